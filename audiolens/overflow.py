"""Overflow: the watch over what interventions write, which stops a run whose activations are no numbers any more.

A strength that is too large for the model's number format turns activations into infinity or NaN, from which a model
goes on to make codes all the same: the clip would be noise and say nothing. Every write is summed over its features
(a sum keeps infinity and NaN), one number a row and step that stays on the device. Once a step, before the next code
is drawn, these and the logits are looked at: one look is what generating waits for at every step anyway.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessor

from audiolens.errors import ActivationOverflow
from audiolens.rows import Layout

LOGITS = "hook_logits"
"""The one place where infinity is meant: a logit of -inf forbids a code."""


class Watch(LogitsProcessor):
    """Looks at one batch's writes and logits; as a logits processor it leaves the scores as they are."""

    def __init__(self, layout: Layout, frame_rate: float) -> None:
        self.layout, self.frame_rate = layout, frame_rate
        self.written: list[tuple[str, int, Tensor]] = []
        self.edited_from: int | None = None

    def wrote(self, site: str, value: Float[Tensor, "batch step ..."], start: int, edited_from: int = 0) -> None:
        """Take note of a value after its edits; `start` is its first step, `edited_from` the first that they touch."""
        first = max(start, edited_from)
        self.edited_from = first if self.edited_from is None else min(first, self.edited_from)
        if not site.endswith(LOGITS):
            self.written.append((site, start, _summed(value)))

    def ended(self, site: str, stream: Float[Tensor, "batch step d_model"], start: int) -> None:
        """Look at the stream with which a run stops before its logits."""
        self.written.append((site, start, _summed(stream)))
        self.look()

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Look at everything since the last call, and at the scores "sequence vocab" of the step that ends here."""
        self.look(scores[:, None], input_ids.shape[-1] - 1)
        return scores

    def look(self, logits: Float[Tensor, "sequence step vocab"] | None = None, start: int = 0) -> None:
        """Stop the run if anything written since the last look, or the logits after it, is infinite or NaN.

        Raises:
            ActivationOverflow: naming the first such site, row and step.
        """
        sites = [(site, first, sums.isfinite()) for site, first, sums in self.written]
        edited_from = self.edited_from
        self.written, self.edited_from = [], None
        if logits is not None:
            # The model's own processors, and a user's edit, may have forbidden codes.
            sites.append((LOGITS, start, _summed(logits).isnan().logical_not()))
        if not sites:
            return
        device = sites[-1][2].device
        if bool(torch.cat([sound.flatten().to(device) for _, _, sound in sites]).all()):
            return
        site, first, sound = next(entry for entry in sites if not bool(entry[2].all()))
        # The earliest step, and there the first row: logits hold a row's codebooks one after the other.
        place, step = min(sound.logical_not().nonzero().tolist(), key=lambda found: (found[1], found[0]))
        per_branch = max(len(sound) // self.layout.branches, 1)  # positions are one for all rows
        row = self.layout.rows[place % per_branch * len(self.layout.rows) // per_branch]
        branch = "cond" if place < per_branch else "null"
        # What is no number reaches earlier steps too, through an attention that weighs it with zero.
        at = first + step if edited_from is None else max(first + step, edited_from)
        when = f"step {at} ({at / self.frame_rate:.2f} s)" if at >= 0 else f"the prefix, position {at}"
        raise ActivationOverflow(
            f"activations overflowed in row {row}, {when}: infinite or NaN at {site} (branch {branch}), after the "
            "interventions of this run. Lower the strength of that row, or load the model in a wider dtype."
        )


def _summed(value: Tensor) -> Tensor:
    """A number for each row and step that is not finite where a feature is not. Sums of half precision are taken in
    float32: in their own they would overflow long before a feature does. (Those of float32 do so where features come
    within their number of its largest, 3e38: past any use.)"""
    return value.flatten(2).sum(-1, dtype=torch.promote_types(value.dtype, torch.float32))
