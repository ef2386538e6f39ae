"""A check that the two prompts of every matched pair have the same number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from audiolens.errors import PromptError


def refuse_unequal(sizes: Sequence[Sequence[int]], what: str) -> None:
    """Raise `PromptError` if the prompts of a pair differ in length, because their tokens would not line up.

    Args:
        sizes: for each side, the number of tokens of each prompt.
        what: the operation that needs equal lengths; the error message starts with it.
    """
    apart = [row for row, (a, b) in enumerate(zip(*sizes, strict=True)) if a != b]
    if apart:
        a, b = sizes[0][apart[0]], sizes[1][apart[0]]
        raise PromptError(
            f"{what}: {len(apart)} of {len(sizes[0])} pairs have prompts of different length, such as pair "
            f"{apart[0]} with {a} and {b} tokens. Reword them (lens.text_tokens shows the tokens), leave them out, "
            "or use patching.pairs(..., same_length=True)."
        )
