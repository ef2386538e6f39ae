"""Prompts reach the text encoder uncut and right-padded, and words unknown to the tokenizer are reported."""

import copy
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Tokenizer

import audiolens as al
from analysis import attention, cli, patching, sweep
from audiolens.errors import InputError, ModelFilesError, PromptError, UnreadWordsWarning
from audiolens.model import text, tokens

PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁fast", -1.0)]
LETTERS = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz.,"]
UNEVEN = ["fast piano", "a slow song with drums and guitar", "dark jazz"]


def named(call: Callable[[], Any]) -> list[str]:
    """The messages about unread words of one call; errors pass."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in told if issubclass(one.category, UnreadWordsWarning)]


def word_level(words: list[str], unk_token: str | None = "<unk>") -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token=unk_token)


@pytest.fixture(scope="module")
def etude() -> al.AudioLens:
    return al.AudioLens.from_pretrained("etude")


@pytest.fixture
def unsettled(lens: al.AudioLens) -> al.AudioLens:
    """The lens's model under a tokenizer whose every setting is another than that which the lens wants."""
    tokenizer = copy.deepcopy(lens.tokenizer)
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    tokenizer.backend_tokenizer.enable_padding(direction="left", length=30)
    tokenizer.backend_tokenizer.enable_truncation(2, direction="left")
    tokenizer.pad_token = None
    return al.AudioLens(lens.model, tokenizer)


def test_the_texts_states_are_those_of_transformers_padded_on_the_right(
    lens: al.AudioLens, unsettled: al.AudioLens
) -> None:
    inputs = lens.tokenizer(UNEVEN, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        states = lens.model.text_encoder(**inputs).last_hidden_state
    for one in (lens, unsettled):
        read = text.encode(UNEVEN, one.model, one.tokenizer)
        assert torch.equal(read.mask, inputs["attention_mask"])
        assert torch.equal(read.states, states)
        assert text.lengths(UNEVEN, one.tokenizer, 64) == inputs["attention_mask"].sum(1).tolist()
        assert one.text_tokens(UNEVEN) == lens.text_tokens(UNEVEN)
        longer = text.encode(UNEVEN, one.model, one.tokenizer, 16)
        assert longer.mask.shape == (3, 16)
        assert torch.equal(longer.mask[:, : inputs["input_ids"].shape[1]], read.mask)


def test_a_tokenizers_settings_change_no_result_and_are_left_alone(
    lens: al.AudioLens, unsettled: al.AudioLens, codes: torch.Tensor
) -> None:
    clean, corrupted = ["a fast song", "fast piano with drums"], ["a slow song", "slow piano with drums"]
    found = []
    for one in (lens, unsettled):
        seen = attention.to_text(one, UNEVEN, codes[:3])
        grid = patching.patch(one, clean, corrupted, codes[:2], by="token", progress=False)
        clips = [one.generate(UNEVEN, 0.4, seeds=[0, 1, 2], exact=exact).codes for exact in (False, True)]
        found.append((seen.weights, grid.to_frame()["effect"].to_numpy(), *clips))
    for mine, other in zip(*found, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert (unsettled.tokenizer.padding_side, unsettled.tokenizer.truncation_side) == ("left", "left")
    assert unsettled.tokenizer.pad_token is None


def test_attention_rests_on_every_token_of_a_left_padding_tokenizers_prompts(
    unsettled: al.AudioLens, codes: torch.Tensor
) -> None:
    weights = attention.to_text(unsettled, UNEVEN, codes[:3]).weights
    # A softmax over the text: were padding read in its place, its weight would be missing.
    np.testing.assert_allclose(np.nansum(weights, -1), 1, atol=1e-5)


def test_unread_words_are_those_outside_the_vocabulary_each_once_without_punctuation() -> None:
    tokenizer = word_level(["a", "tune", "slow"])
    prompts = ["a glittery, slow tune.", None, "A tune", "glittery xylophone-like tune !?", "a tune"]
    assert tokens.unread(prompts, tokenizer) == ["glittery", "A", "xylophone-like"]
    assert tokens.unread(["a slow tune.", None], tokenizer) == []
    assert tokens.unread([None], tokenizer) == tokens.unread([], tokenizer) == []


def test_a_subword_tokenizer_reads_every_word_but_not_signs_that_it_lacks() -> None:
    tokenizer = T5Tokenizer(vocab=[*PIECES, *LETTERS])
    assert tokens.unread(["a glittery xylophone samba, fast."], tokenizer) == []
    assert tokens.unread(["a fast 🎹 song", "日本 song"], tokenizer) == ["🎹", "日本"]


def test_words_that_a_tokenizer_without_an_unknown_token_drops_are_unread() -> None:
    raw = Tokenizer(models.BPE(vocab={"<pad>": 0, "f": 1, "a": 2, "s": 3, "t": 4}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>")
    assert tokenizer.unk_token_id is None
    assert tokens.unread(["fast glug fast"], tokenizer) == ["glug"]


def test_a_tokenizer_without_places_is_asked_word_by_word() -> None:
    fast = word_level(["a", "tune"])

    class Slow:
        is_fast = False
        unk_token_id = fast.unk_token_id

        def __call__(self, texts: Any, **options: Any) -> Any:
            assert "return_offsets_mapping" not in options
            return fast(texts, **options)

    assert tokens.unread(["a glittery, tune.", "rusty tune"], Slow()) == ["glittery", "rusty"]


def test_a_tokenizer_that_panics_is_a_prompt_error() -> None:
    """The exception of a panic in Rust is not an `Exception`, and would end the user's program."""
    good = word_level(["fast"]).backend_tokenizer
    good.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    facts = json.loads(good.to_str())
    facts["post_processor"]["special_tokens"] = {"<pad>": {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}}
    bad = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(facts)), unk_token="<unk>")
    with pytest.raises(PromptError, match="the model's tokenizer fails on 'fast': no entry found for key"):
        tokens.ids(["fast"], bad)


def test_a_tokenizer_that_fails_on_a_word_is_a_prompt_error(lens: al.AudioLens) -> None:
    raw = Tokenizer(models.WordLevel({"<pad>": 0, "fast": 1}, unk_token="<missing>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>")
    with pytest.raises(PromptError, match=r"fails on 'a zig' or one of the 1 prompts after it"):
        tokens.ids(["a zig", "fast"], tokenizer)


def test_every_verb_names_unread_words_in_one_warning_at_the_callers_line(
    lens: al.AudioLens, codes: torch.Tensor
) -> None:
    prompts = ["a glittery song", "a rusty song", "a rusty glittery song"]
    for call in (
        lambda: lens.generate(prompts, 0.4, seeds=0, batch_size=1),
        lambda: lens.run_with_cache(prompts, codes[:3], batch_size=1),
        lambda: list(lens.iter_cache(prompts, codes[:3], batch_size=1, progress=False)),
        lambda: lens.run_with_interventions(prompts, codes[:3], ()),
        lambda: al.difference_in_means(lens, prompts, ["a song"], seconds=0.4, batch_size=1, progress=False),
        lambda: al.measure.code_nats(lens, prompts, codes[:3], batch_size=1),
        lambda: attention.to_text(lens, prompts, codes[:3], batch_size=1),
    ):
        told = named(call)
        assert len(told) == 1
        assert told[0].startswith("unknown to the model: 'glittery', 'rusty'. ")
    with pytest.warns(UnreadWordsWarning) as caught:
        lens.generate("a glittery song", 0.2, seeds=0)
    assert caught[0].filename == __file__
    with pytest.warns(UnreadWordsWarning) as caught:
        al.difference_in_means(lens, ["a glittery song"], ["a song"], seconds=0.4, progress=False)
    assert caught[0].filename == __file__
    with pytest.warns(UnreadWordsWarning, match="'glittery'"), lens.trace("a glittery song"):
        lens.site("resid_post", 0).value.save()


def test_a_known_text_and_no_text_warn_of_nothing(lens: al.AudioLens) -> None:
    assert named(lambda: lens.generate(["a fast song", None], 0.4, seeds=0)) == []


def test_a_second_call_names_its_words_again(lens: al.AudioLens) -> None:
    call = lambda: lens.generate("a glittery song", 0.2, seeds=0)  # noqa: E731
    assert len(named(call)) == len(named(call)) == 1


def test_experiments_name_unread_words_once(lens: al.AudioLens, codes: torch.Tensor, directions: al.Directions) -> None:
    clean, corrupted = ["a fast glittery song", "fast drums"], ["a slow rusty song", "slow drums"]
    calls = {
        "patch": lambda: patching.patch(lens, clean, corrupted, codes[:2], progress=False),
        "sweep": lambda: sweep.run(
            lens, directions, strengths=[1], layers=[1], prompts=["a glittery song", "rusty drums"], seeds=1,
            seconds=0.4, n_random=0, batch_size=1, n_jobs=1, measures=("loudness",), progress=False,
        ),
    }  # fmt: skip
    for name, call in calls.items():
        told = named(call)
        assert len(told) == 1, (name, told)
        assert "'glittery'" in told[0], name
        assert "'rusty'" in told[0], name


@pytest.fixture(scope="module")
def directions(lens: al.AudioLens) -> al.Directions:
    return al.difference_in_means(lens, ["fast song"], ["slow song"], seconds=0.4, label="pace", progress=False)


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        (["a glittery song"], ["a rusty song"]),
        # In another order each text meets another seed: the difference would be the seeds', and not 0.
        (["a glittery song", "glittery drums"], ["rusty drums", "a rusty song"]),
        ([None], [None]),
    ],
)
def test_poles_that_the_model_reads_alike_have_no_direction(lens: al.AudioLens, positive: Any, negative: Any) -> None:
    with pytest.raises(PromptError, match="reads both poles alike"):
        al.difference_in_means(lens, positive, negative, seconds=0.4, progress=False)


def test_poles_told_apart_by_their_music_may_have_one_text(lens: al.AudioLens, codes: torch.Tensor) -> None:
    read = al.difference_in_means(lens, [None], [None], codes=(codes[:1], codes[1:2]), progress=False)
    assert bool((read.norms > 0).all())


def test_a_direction_of_length_0_at_every_layer_is_refused(lens: al.AudioLens) -> None:
    # Before the first block, the first step is the start token's embedding, whatever the text.
    with pytest.raises(InputError, match="0 at every layer"):
        al.difference_in_means(
            lens, ["fast"], ["slow"], site="resid_pre", layers=[0], position="first", progress=False
        )  # fmt: skip


def test_a_folder_without_its_tokenizer_is_not_a_whole_model(tmp_path: Path, checkpoint: Path) -> None:
    for source in (checkpoint, Path(al.__file__).parent / "etude" / "weights"):
        folder = tmp_path / source.name
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("tokenizer*"))
        with pytest.raises(ModelFilesError, match=rf"{source.name}.*tokenizer"):
            al.AudioLens.from_pretrained(folder)


def test_a_tokenizer_of_more_tokens_than_the_text_encoder_embeds_is_refused(
    tmp_path: Path, checkpoint: Path, lens: al.AudioLens, etude: al.AudioLens
) -> None:
    message = "numbers its tokens up to 170, but the text encoder embeds 32"
    with pytest.raises(InputError, match=message) as caught:
        al.AudioLens(lens.model, etude.tokenizer)
    assert not isinstance(caught.value, ModelFilesError)
    folder = tmp_path / "mixed"
    shutil.copytree(checkpoint, folder)
    etude.tokenizer.save_pretrained(folder)
    with pytest.raises(ModelFilesError, match=message):
        al.AudioLens.from_pretrained(folder)


def test_a_tokenizer_that_knows_no_word_is_refused(lens: al.AudioLens, etude: al.AudioLens) -> None:
    # What transformers 5 makes of a folder that holds no tokenizer: special tokens, and the sign of a word's start.
    for tokenizer in (T5Tokenizer(), word_level([])):
        with pytest.raises(InputError, match="knows no words"):
            al.AudioLens(etude.model, tokenizer)
    with pytest.raises(TypeError, match="expected a tokenizer or a processor"):
        al.AudioLens(lens.model, print)


def test_a_vocabulary_of_a_fraction_of_the_embedding_is_warned_of(lens: al.AudioLens, etude: al.AudioLens) -> None:
    with pytest.warns(UserWarning, match="21 tokens, but the text encoder embeds 171"):
        al.AudioLens(etude.model, lens.tokenizer)


@pytest.mark.parametrize("prompts", [{"fast", "slow"}, frozenset({"fast"}), {"fast": 1, "slow": 2}, {"a": 1}.keys()])
def test_prompts_without_an_order_are_refused_everywhere(
    lens: al.AudioLens, codes: torch.Tensor, directions: al.Directions, prompts: Any
) -> None:
    for call in (
        lambda: lens.generate(prompts, 0.4),
        lambda: lens.run_with_cache(prompts),
        lambda: lens.text_tokens(prompts),
        lambda: al.difference_in_means(lens, prompts, ["a song"], progress=False),
        lambda: patching.patch(lens, prompts, ["a song"], codes[:2], progress=False),
        lambda: attention.to_text(lens, prompts, codes[:2]),
        lambda: sweep.run(lens, directions, prompts=prompts, progress=False),
        lambda: lens.generate(["fast", "slow"], 0.4, seeds=dict.fromkeys([0, 1])),
        lambda: lens.generate(["fast", "slow"], 0.4, seeds={0, 1}),
    ):
        with pytest.raises((PromptError, TypeError), match="in order"):
            call()


def test_a_generator_of_prompts_or_seeds_is_read_once_and_whole(lens: al.AudioLens) -> None:
    expected = lens.generate(["fast song", "slow song"], 0.4, seeds=[3, 4]).codes
    made = lens.generate((f"{word} song" for word in ("fast", "slow")), 0.4, seeds=iter([3, 4])).codes
    assert torch.equal(made, expected)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Run the command in an empty folder: (exit code, lines of stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*arguments: object) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["audiolens", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, [line for line in capsys.readouterr().err.splitlines() if line.startswith("audiolens: ")]

    return call


def test_the_command_line_names_unread_words_in_one_line(run: Callable[..., Any], tmp_path: Path) -> None:
    code, lines = run("generate", "a glittery xylophone samba", "a rusty tune", "--seconds", 0.5)
    assert code == 0
    assert len(lines) == 1
    assert lines[0].startswith("audiolens: unknown to the model: 'glittery', 'xylophone', 'samba', 'rusty'. ")
    assert run("generate", "a fast little tune", "--seconds", 0.5, "-o", "known") == (0, [])


def test_a_direction_between_words_that_the_model_does_not_know_is_refused(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "gr.csv").write_text("glittery,rusty\na glittery tune,a rusty tune\nglittery drums,rusty drums\n")
    code, lines = run("directions", "gr.csv", "-o", "gr.safetensors", "--seconds", 0.5, "--json")
    assert code == 2
    assert "the model reads both poles alike: it does not know 'glittery', 'rusty'" in lines[-1]
    assert not any("unknown to the model" in line for line in lines)
    assert not (tmp_path / "gr.safetensors").exists()
