"""The wording of the newer études: held-out synonyms stay out of captions, and no text has an unknown token."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from audiolens.etude import captions, synth, words
from audiolens.etude.attributes import CONCEPTS
from audiolens.etude.training import evaluate, prompt_sets, subwords, text
from audiolens.etude.training.recipes import BASE

WORDING = BASE.reading.wording


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return BASE.reading.tokenizer()


@pytest.fixture(scope="module")
def labels() -> list[synth.Label]:
    return [synth.draw(index, 9, BASE.material.music, WORDING) for index in range(3000)]


def test_held_out_words_never_occur_in_captions(labels: list[synth.Label]) -> None:
    held_out = set(subwords.held_out_words(WORDING))
    assert {"allegro", "mellow", "energetic", "faster"} <= held_out
    assert held_out.isdisjoint(captions.vocabulary(WORDING))
    rng = np.random.default_rng(0)
    seen = {word for label in labels for word in BASE.reading.scatter(label.caption.text, rng).split()}
    assert held_out.isdisjoint(seen)
    assert all(held_out.isdisjoint(word.split()) for frame in evaluate.FRAMES for word in [frame])


def test_every_concept_has_held_out_words_for_every_pole() -> None:
    poles = {**evaluate.POLES, "instrument": tuple(WORDING.adjectives["instrument"])}
    assert set(poles) == set(CONCEPTS)
    for concept, levels in poles.items():
        assert all(len(WORDING.held_out[concept][level]) >= 2 for level in levels)


def test_no_word_has_two_meanings_among_trained_adjectives() -> None:
    found = [word for levels in WORDING.adjectives.values() for texts in levels.values() for word in texts]
    assert len(found) == len(set(found))


def test_prompts_for_the_bundled_etude_use_trained_words(tokenizer: PreTrainedTokenizerFast) -> None:
    assert set(captions.vocabulary()) <= set(captions.vocabulary(WORDING))
    for concept in prompt_sets.CONTRASTS:
        for pair in prompt_sets.pairs(concept, 20):
            for prompt in pair:
                pieces = tokenizer.tokenize(prompt)
                assert all(piece.startswith("▁") or piece in subwords.SUFFIXES for piece in pieces), pieces


def test_no_text_has_an_unknown_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.unk_token is None
    texts = [*subwords.held_out_words(WORDING), *evaluate.FRAMES, "Ünïcode, 日本語 ♪ ?", "a\tb\nc"]
    for written in texts:
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        assert ids
        read = tokenizer.decode(ids)
        spaced = re.sub(r"\s+", " ", written.lower())
        assert re.sub(r"\s+", " ", read).strip() == spaced.strip()


def test_words_are_whole_or_a_known_word_and_a_suffix(tokenizer: PreTrainedTokenizerFast) -> None:
    known = {*captions.vocabulary(WORDING), *subwords.held_out_words(WORDING)}
    for word in known:
        first, *rest = tokenizer.tokenize(word)
        assert first.removeprefix("▁") in known
        assert rest in ([], ["er"], ["ly"])
    assert tokenizer.tokenize("faster") == ["▁fast", "er"]
    assert tokenizer.tokenize("allegro") == ["▁allegro"]
    assert len(tokenizer.tokenize("rainy")) <= 4


def test_the_tokenizer_is_read_back_as_it_was_written(tokenizer: PreTrainedTokenizerFast, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for written in ("a faster rainy tune", "mournfully, 日本"):
        assert again(written)["input_ids"] == tokenizer(written)["input_ids"]


def test_vectors_of_synonyms_are_similar_and_fixed(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = BASE.reading.encoder(tokenizer)
    assert not encoder.shared.weight.requires_grad
    table, index = encoder.shared.weight, tokenizer.get_vocab()
    assert table.std() == pytest.approx(1.0, abs=0.02)

    def cosine(first: str, second: str) -> float:
        return float(torch.cosine_similarity(table[index["▁" + first]], table[index["▁" + second]], dim=0))

    for concept, levels in WORDING.held_out.items():
        for level, unseen in levels.items():
            for word in unseen:
                if "▁" + word not in index:
                    continue
                own = [cosine(word, other) for other in WORDING.adjectives[concept][level] if "▁" + other in index]
                away = [
                    cosine(word, other)
                    for name, values in WORDING.adjectives.items()
                    for value, texts in values.items()
                    for other in texts
                    if (name, value) not in words.senses()[word] and "▁" + other in index
                ]
                assert np.mean(own) > 0.3 + np.mean(away), word
    assert torch.equal(BASE.reading.encoder(tokenizer).shared.weight, table)


def test_pretraining_leaves_the_vectors_alone(tokenizer: PreTrainedTokenizerFast, tmp_path) -> None:
    encoder = BASE.reading.encoder(tokenizer)
    before = encoder.shared.weight.clone()
    block = encoder.encoder.block[0].layer[0].SelfAttention.q.weight
    moved = block.clone()
    text.pretrain(encoder, tokenizer, tmp_path / "text.safetensors", 2, 8, reading=BASE.reading)
    assert torch.equal(encoder.shared.weight, before)
    assert not torch.equal(block, moved)


def test_invented_words_are_no_known_words_and_replace_neutral_ones_only() -> None:
    rng = np.random.default_rng(0)
    known = frozenset(captions.vocabulary(WORDING))
    caption = "a slow little tune at full volume in a cafe"
    for _ in range(60):
        scattered = BASE.reading.scatter(caption, rng).split()
        kept = [word for word in scattered if word in known]
        neutral = {"a", "little", "tune"}
        assert [w for w in kept if w not in neutral] == ["slow", "at", "full", "volume", "in", "cafe"]


def test_scenes_are_named_as_they_sound_and_name_no_attribute(labels: list[synth.Label]) -> None:
    phrases = {
        phrase: (part, value)
        for part, values in words.SCENES.items()
        for value, texts in values.items()
        for phrase in texts
    }
    named = 0
    for label in labels:
        sounds = {"kit": label.scene.kit, "bass": label.scene.bass, "meter": str(label.attributes.meter)}
        for phrase, (part, value) in phrases.items():
            if f" {phrase} " in f" {label.caption.text} ":
                named += 1
                assert sounds[part] == value
    assert named / len(labels) == pytest.approx(captions.SCENE_SHARE, abs=0.04)


def test_neutral_captions_name_scenes_but_no_attribute() -> None:
    texts = evaluate.neutral_captions(48, wording=WORDING)
    assert len(set(texts)) == 48
    scenes = [phrase for values in words.SCENES.values() for texts in values.values() for phrase in texts]
    assert 12 <= sum(any(written.endswith(phrase) for phrase in scenes) for written in texts) <= 36
    telling = {word for levels in WORDING.adjectives.values() for names in levels.values() for word in names}
    assert all(telling.isdisjoint(written.split()) for written in texts)


def test_held_out_wordings_cannot_be_training_captions() -> None:
    known = set(captions.vocabulary(WORDING))
    for grammar in (WORDING.adjectives, WORDING.held_out):
        for concept, levels in grammar.items():
            for level in levels:
                frames = evaluate.held_out_captions(concept, level, words=grammar)
                assert all(set(written.split()) - known for written in frames)
