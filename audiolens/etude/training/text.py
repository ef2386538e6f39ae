"""étude's text side: a tokenizer over the caption grammar, and a small T5 encoder.

The bundled étude's tokenizer knows whole words only, and words outside the grammar become a single unknown token.
Training inserts that token at random and substitutes it for neutral words, so that unseen words do not affect what
étude plays. The newer études have the tokenizer of `subwords`, and training inserts invented words instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from audiolens.etude import captions
from audiolens.etude.attributes import CONCEPTS, INSTRUMENTS, Attributes
from audiolens.etude.captions import PLAIN, Wording
from audiolens.etude.form import Scene
from audiolens.etude.training import checkpoint, subwords

MAX_TOKENS = 64
STEPS = 1200
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
TARGETS = tuple(name for name, _ in Attributes.draw(np.random.default_rng(0)).targets())


@dataclass(frozen=True)
class Reading:
    """How a model reads its prompts.

    Attributes:
        wording: the words of its captions.
        subwords: whether the tokenizer spells unknown words (`subwords`), and word vectors are fixed by a table of
            synonyms. Otherwise unknown words are one token, and word vectors are trained.
        steps: the steps of pre-training; 0 leaves it out.
    """

    wording: Wording = PLAIN
    subwords: bool = False
    steps: int = STEPS

    @cached_property
    def neutral_words(self) -> frozenset[str]:
        """The words of captions that name neither an attribute nor a part of the scene."""
        own = self.wording
        neutral = (*own.neutral, *own.nouns, *own.openings, *own.endings)
        telling = {
            word
            for grammar in (own.adjectives, own.phrases, own.scenes)
            for levels in grammar.values()
            for wording in levels.values()
            for text in wording
            for word in text.split()
        }
        return frozenset(word for text in neutral for word in text.split()) - telling

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset((*captions.vocabulary(self.wording), *subwords.held_out_words(self.wording)))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer for this wording."""
        return subwords.build_tokenizer(self.wording) if self.subwords else build_tokenizer()

    def encoder(self, tokenizer: PreTrainedTokenizerFast) -> T5EncoderModel:
        """An untrained text encoder for this tokenizer."""
        encoder = build_encoder(len(tokenizer))
        if self.subwords:
            encoder.shared.weight.data = subwords.vectors(tokenizer, self.wording, encoder.config.d_model)
            encoder.shared.weight.requires_grad_(False)
        return encoder

    def scatter(self, text: str, rng: np.random.Generator) -> str:
        """Scatter words without meaning over a caption: the unknown token, or invented words."""
        if self.subwords:
            return subwords.scatter_invented(text, rng, self.neutral_words, self._known)
        return scatter_unknown(text, rng)


BUNDLED = Reading()
"""How the bundled étude reads its prompts."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of lower-cased words and single punctuation marks; every word outside the grammar is `<unk>`."""
    words = [PAD, EOS, UNKNOWN, *captions.vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, model_max_length=MAX_TOKENS
    )


def build_encoder(n_words: int) -> T5EncoderModel:
    """An untrained T5 encoder of width 96 with two blocks."""
    return T5EncoderModel(
        T5Config(
            vocab_size=n_words, d_model=96, d_kv=24, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0,
            use_cache=False, is_encoder_decoder=False,
        )
    )  # fmt: skip


def scatter_unknown(text: str, rng: np.random.Generator, replaced: float = 0.15, inserted: float = 0.35) -> str:
    """Replace some neutral words with the unknown token, and sometimes insert up to six of these tokens anywhere."""
    words = [UNKNOWN if w in BUNDLED.neutral_words and rng.random() < replaced else w for w in text.split()]
    if rng.random() < inserted:
        for _ in range(rng.integers(1, 7)):
            words.insert(rng.integers(len(words) + 1), UNKNOWN)
    return " ".join(words)


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> BatchEncoding:
    return tokenizer(texts, return_tensors="pt", padding=True)


def named_targets(attributes: Attributes, caption: captions.Caption) -> list[float]:
    """The attributes as regression targets, which are 0 if the caption does not name the attribute."""
    named = {CONCEPTS[concept] for concept in caption.named}
    return [
        value if (name in named or (name in INSTRUMENTS and "instrument" in named)) else 0.0
        for name, value in attributes.targets()
    ]


def pretrain(
    encoder: T5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    steps: int = STEPS,
    batch_size: int = 128,
    report: Callable[[int, int, dict[str, float]], None] = lambda *_: None,
    reading: Reading = BUNDLED,
    seed: int = 0,
    save_every: int = 200,
    device: str = "cpu",
) -> T5EncoderModel:
    """Pre-train the encoder to predict the attributes that captions name, through a linear head that is then discarded.

    Unlike a head inside the decoder, a head on the text encoder does not favour any decoder block. Checkpoints are
    written to `out`, and training resumes from an existing one.
    """
    torch.manual_seed(seed)
    reader: Any = encoder
    reader.to(device)
    head = build_head(encoder).to(device)
    parameters = [p for p in (*encoder.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    done = checkpoint.load(out, {"encoder": encoder, "head": head}, optimizer)
    if done >= steps:
        return encoder
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    encoder.train()
    for step in range(steps):
        if step < done:
            # The learning rate depends on the number of steps alone.
            optimizer._opt_called = True  # type: ignore[attr-defined]
            scheduler.step()
            continue
        texts, targets = _batch(_stream(12, step, seed), batch_size, reading)
        targets = targets.to(device)
        tokens = tokenize(tokenizer, texts).to(device)
        states = reader(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        pooled = (states * mask).sum(1) / mask.sum(1)
        loss = torch.nn.functional.mse_loss(head(pooled), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        if (step + 1) % 20 == 0:
            report(step + 1, steps, {"unexplained": float(loss.detach() / targets.var())})
        if (step + 1) % save_every == 0 or step + 1 == steps:
            checkpoint.save(out, {"encoder": encoder, "head": head}, step + 1, optimizer)
    return encoder.eval()


def _stream(purpose: int, step: int, seed: int) -> np.random.Generator:
    """The random numbers of one step; seed 0 gives the stream of the bundled étude."""
    return np.random.default_rng([purpose, step, seed] if seed else [purpose, step])


def build_head(encoder: T5EncoderModel) -> torch.nn.Linear:
    """The linear head from the encoder's state to the targets; it is discarded after training."""
    return torch.nn.Linear(encoder.config.d_model, len(TARGETS))


def _batch(
    rng: np.random.Generator, n: int, reading: Reading = BUNDLED
) -> tuple[list[str], Float[Tensor, "row target"]]:
    drawn = [Attributes.draw(rng) for _ in range(n)]
    scenes = [Scene.draw(rng) if reading.wording.scenes else Scene() for _ in range(n)]
    written = [
        captions.caption(attributes, rng, wording=reading.wording, scene=scene)
        for attributes, scene in zip(drawn, scenes, strict=True)
    ]
    targets = [named_targets(a, c) for a, c in zip(drawn, written, strict=True)]
    return [reading.scatter(c.text, rng) for c in written], torch.tensor(targets)
