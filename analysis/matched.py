"""Prompts that are matched, row by row: what is refused where the two of a pair cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence

from audiolens.errors import PromptError


def refuse_unequal(sizes: Sequence[Sequence[int]], what: str) -> None:
    """Raise where a pair's prompts have different numbers of tokens: a token would meet another one's place.

    Args:
        sizes: lengths in tokens of both sides' prompts.
        what: needs them equal, and why.
    """
    apart = [row for row, (a, b) in enumerate(zip(*sizes, strict=True)) if a != b]
    if apart:
        a, b = sizes[0][apart[0]], sizes[1][apart[0]]
        raise PromptError(
            f"{what}: {len(apart)} of {len(sizes[0])} pairs have prompts of different length, such as pair "
            f"{apart[0]} with {a} and {b} tokens. Word them alike (lens.text_tokens shows the tokens), leave them out, "
            "or take patching.pairs(..., same_length=True)."
        )
