"""The tokenizer of the newer études: whole words of the wording, and pieces for all other text.

It is a unigram model whose pieces are listed here instead of estimated, so it is the same everywhere. Known words are
one piece, or a known word and a suffix ("fast" + "er"). All other words are spelled in common pairs of letters, single
letters and bytes, so no text has an unknown token.
"""

from __future__ import annotations

import string
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from audiolens.etude.captions import Wording, vocabulary
from audiolens.etude.words import OWN_SHARE, VECTOR_SEED, senses

PAD, EOS = "<pad>", "</s>"
MAX_TOKENS = 128
SPACE = "▁"
SUFFIXES = ("er", "ly")
PAIRS = (
    "th", "he", "in", "er", "an", "re", "nd", "at", "on", "nt", "ha", "es", "st", "en", "ed", "to", "it", "ou",
    "ea", "hi", "is", "or", "ti", "as", "te", "et", "ng", "of", "al", "de", "se", "le", "sa", "si", "ar", "ve",
    "ra", "ld", "ur", "ly", "ic", "ro", "me", "ne", "ri", "li", "co", "io", "ce", "ch", "ll", "be", "ma", "us",
    "la", "el", "ta", "no", "ho", "ut", "wa", "ca", "pe", "so", "po", "il", "mo", "un", "lo", "di", "tr", "sh",
    "ee", "oo", "ow", "ay",
)  # fmt: skip
"""Common pairs of letters in English, so that unknown words take fewer pieces."""
_WORD, _PAIR, _LETTER, _BYTE = -1.0, -3.0, -4.0, -20.0
_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnprstvwyz"


def build_tokenizer(wording: Wording) -> PreTrainedTokenizerFast:
    """A tokenizer without an unknown token, in which the words of `wording` are whole or a word with a suffix."""
    scores = {PAD: 0.0, EOS: 0.0}
    scores |= {SPACE + word: _WORD for word in whole_words(wording)}
    scores |= dict.fromkeys(PAIRS, _PAIR)
    scores |= dict.fromkeys((SPACE, *string.ascii_lowercase, *string.digits, *string.punctuation), _LETTER)
    scores |= {f"<0x{byte:02X}>": _BYTE for byte in range(256)}
    # A unigram model needs an unknown piece, but with all 256 bytes in the vocabulary it is never used.
    unused = list(scores).index("<0x00>")
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=unused, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("  ", " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(SPACE)])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, model_max_length=MAX_TOKENS
    )


def whole_words(wording: Wording) -> list[str]:
    """The words with a piece of their own: trained and held-out ones, except those that are a known word and a
    suffix."""
    words = {*vocabulary(wording), *held_out_words(wording)}
    return sorted(w for w in words if not any(w.endswith(end) and w.removesuffix(end) in words for end in SUFFIXES))


def held_out_words(wording: Wording) -> list[str]:
    """Every held-out word, sorted."""
    texts = (text for levels in wording.held_out.values() for texts in levels.values() for text in texts)
    return sorted({word for text in texts for word in text.split()})


def vectors(tokenizer: PreTrainedTokenizerFast, wording: Wording, width: int) -> Float[Tensor, "token width"]:
    """A fixed vector for every token: words of one sense share most of theirs, all other tokens have unrelated ones.

    Every component has a variance of 1, as in a fresh T5.
    """
    rng = np.random.default_rng(VECTOR_SEED)
    shared = {
        (concept, level): rng.standard_normal(width)
        for concept, levels in wording.adjectives.items()
        for level in levels
    }
    table = rng.standard_normal((len(tokenizer), width))
    meanings = senses(wording)
    for token, index in tokenizer.get_vocab().items():
        own = meanings.get(token.removeprefix(SPACE)) if token.startswith(SPACE) else None
        if own:
            common = np.sum([shared[sense] for sense in own], axis=0) / np.sqrt(len(own))
            table[index] = np.sqrt(OWN_SHARE) * table[index] + np.sqrt(1 - OWN_SHARE) * common
    return torch.from_numpy(table).float()


def scatter_invented(
    text: str,
    rng: np.random.Generator,
    neutral: Iterable[str],
    known: Iterable[str],
    replaced: float = 0.15,
    inserted: float = 0.35,
) -> str:
    """Replace some `neutral` words with invented words, and sometimes insert up to six of them anywhere.

    Invented words are spelled in the same pieces as words that the model never saw, so it learns to ignore those.
    """
    neutral, known = frozenset(neutral), frozenset(known)
    words = [invented(rng, known) if w in neutral and rng.random() < replaced else w for w in text.split()]
    if rng.random() < inserted:
        for _ in range(rng.integers(1, 7)):
            words.insert(rng.integers(len(words) + 1), invented(rng, known))
    return " ".join(words)


def invented(rng: np.random.Generator, known: frozenset[str]) -> str:
    """A pronounceable word of one to three syllables that neither is a `known` word nor begins with a longer one."""
    while True:
        word = "".join(_syllable(rng) for _ in range(rng.integers(1, 4)))
        if word not in known and not any(word[:end] in known for end in range(3, len(word))):
            return word


def _syllable(rng: np.random.Generator) -> str:
    parts = (_CONSONANTS, _VOWELS, _CONSONANTS)
    shares = (0.85, 1.0, 0.55)
    return "".join(p[rng.integers(len(p))] for p, share in zip(parts, shares, strict=True) if rng.random() < share)
