"""étude's text side: a word-level tokenizer over the caption grammar, and a small T5 encoder.

Words outside the grammar become a single unknown token. Training inserts that token at random and substitutes it for
neutral words, so that unseen words do not affect what étude plays.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from audiolens.etude import captions
from audiolens.etude.attributes import CONCEPTS, INSTRUMENTS, Attributes
from audiolens.etude.training import checkpoint

MAX_TOKENS = 64
STEPS = 1200
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
TARGETS = tuple(name for name, _ in Attributes.draw(np.random.default_rng(0)).targets())


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
    words = [UNKNOWN if w in _NEUTRAL_WORDS and rng.random() < replaced else w for w in text.split()]
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
) -> T5EncoderModel:
    """Pre-train the encoder to predict the attributes that captions name, through a linear head that is then discarded.

    Unlike a head inside the decoder, a head on the text encoder does not favour any decoder block.
    """
    torch.manual_seed(0)
    head = build_head(encoder)
    if checkpoint.load(out, {"encoder": encoder, "head": head}) >= steps:
        return encoder
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    encoder.train()
    for step in range(steps):
        texts, targets = _batch(np.random.default_rng([12, step]), batch_size)
        tokens = tokenize(tokenizer, texts)
        states = encoder(**tokens).last_hidden_state
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
    checkpoint.save(out, {"encoder": encoder, "head": head}, steps)
    return encoder.eval()


def build_head(encoder: T5EncoderModel) -> torch.nn.Linear:
    """The linear head from the encoder's state to the targets; it is discarded after training."""
    return torch.nn.Linear(encoder.config.d_model, len(TARGETS))


def _batch(rng: np.random.Generator, n: int) -> tuple[list[str], Float[Tensor, "row target"]]:
    drawn = [Attributes.draw(rng) for _ in range(n)]
    written = [captions.caption(attributes, rng) for attributes in drawn]
    targets = [named_targets(a, c) for a, c in zip(drawn, written, strict=True)]
    return [scatter_unknown(c.text, rng) for c in written], torch.tensor(targets)


def _neutral_words() -> frozenset[str]:
    neutral = (*captions.NEUTRAL_ADJECTIVES, *captions.NOUNS, *captions.OPENINGS, *captions.ENDINGS)
    concept = {
        word
        for grammar in (captions.ADJECTIVES, captions.PHRASES)
        for levels in grammar.values()
        for wording in levels.values()
        for text in wording
        for word in text.split()
    }
    return frozenset(word for text in neutral for word in text.split()) - concept


_NEUTRAL_WORDS = _neutral_words()
