"""Overflow: the watch over what interventions write, which stops a run whose activations become NaN or infinite.

A strength that is too large for the model's number format turns activations into infinity or NaN, as a broken weight
does, and from them a model goes on to make codes all the same: the clip would be noise and say nothing. Once a step,
before the next code is drawn, the logits are looked at: one number, and one look is what generating waits for at every
step anyway. A forward over given codes hands NaN out as the bare model does; what computes a number from its logits
refuses it (`checked_logits`).

What is infinite or NaN in the residual stream makes the logits of its own step NaN, by way of the final norm. Writes to
it are therefore only kept, and looked at when that happens, to say where it began. Others may be lost on the way (a
weight of zero, a step that is not the last of its forward, a value replaced further up): they are summed over their
features, which keeps infinity and NaN, and the sums are looked at with the logits.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessor

from audiolens.errors import ActivationOverflow, InputError
from audiolens.model.sites import Site
from audiolens.tracing.batching import Layout

LOGITS = "hook_logits"
"""The one place where an infinity is meant: a logit of -inf forbids its code. One of +inf is no probability."""
STREAM = frozenset(
    f"hook_{name}"
    for name in (
        "embed", "resid_pre", "attn_out", "resid_mid", "cross_attn_out", "resid_cross", "mlp_out", "resid_post",
    )
)  # fmt: skip
"""Sites that are the residual stream, or are added to it as they are."""


class Watch(LogitsProcessor):
    """Looks at one batch's writes and logits; as a logits processor it leaves the scores as they are.

    `replaced` says that some edit puts other values in place, so that the stream may lose what was written below;
    `traced`, that a trace may write what the watch is not shown.
    """

    def __init__(self, layout: Layout, frame_rate: float, replaced: bool = False, traced: bool = False) -> None:
        self.layout, self.frame_rate, self.replaced, self.traced = layout, frame_rate, replaced, traced
        self.written = False
        self.kept: list[tuple[Site | str, int, Tensor]] = []
        """Writes in their order: whole where the logits show them, else their sums "batch step"."""
        self.edited_from: int | None = None

    def wrote(self, site: Site, value: Float[Tensor, "batch step ..."], start: int, edited_from: int = 0) -> None:
        """Take note of a value after its edits; `start` is its first step, `edited_from` the first that they touch."""
        # Called at every site of every step: names and sums wait until they are needed.
        self.written = True
        first = start if start > edited_from else edited_from
        if self.edited_from is None or first < self.edited_from:
            self.edited_from = first
        if value.shape[1] == 1 and site.hook in STREAM and not self.replaced:
            self.kept.append((site, start, value))
        elif site.hook != LOGITS:
            self.kept.append((site, start, _summed(value)))

    def ended(self, site: str, stream: Float[Tensor, "batch step d_model"], start: int) -> None:
        """Look at the stream with which a run stops before its logits."""
        self.kept.append((site, start, _summed(stream)))
        self.look()

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Look at everything since the last call, and at the scores "sequence vocab" of the step that ends here."""
        if self.look(scores[:, None], input_ids.shape[-1] - 1) == -math.inf:
            self._refuse_all_forbidden(scores, input_ids.shape[-1] - 1)
        return scores

    def look(self, logits: Float[Tensor, "sequence step vocab"] | None = None, start: int = 0) -> float:
        """Stop the run if anything written since the last look, or the logits after it, is infinite or NaN.

        Returns:
            The sum of the logits: -inf where some forbid their code.

        Raises:
            ActivationOverflow: naming the first such site, row and step.
        """
        kept, edited_from = self.kept, self.edited_from
        self.kept, self.edited_from = [], None
        totals = [value.sum() for _, _, value in kept if value.ndim == 2]
        # Infinite or NaN where something summed is (or their own sum overflows: then the close look finds nothing).
        finite = not totals or math.isfinite(torch.stack([one.to(totals[0].device) for one in totals]).sum().item())
        # -inf among logits is meant: processors and edits may have forbidden codes. A sum of both infinities is NaN.
        total = 0.0 if logits is None else logits.sum(dtype=torch.float32).item()
        if finite and total < math.inf:
            return total
        sites: list[tuple[Site | str, int, Tensor]] = [
            (site, at, (_summed(value) if value.ndim == 3 else value).isfinite()) for site, at, value in kept
        ]
        if logits is not None:
            sums = _summed(logits)
            sites.append((LOGITS, start, (sums.isnan() | sums.isposinf()).logical_not()))
        if all(bool(sound.all()) for _, _, sound in sites):
            return total
        site, first, sound = next(entry for entry in sites if not bool(entry[2].all()))
        name = site if isinstance(site, str) else site.name
        # The earliest step, and there the first row: logits hold a row's codebooks one after the other.
        place, step = min(sound.logical_not().nonzero().tolist(), key=lambda found: (found[1], found[0]))
        per_branch = max(len(sound) // self.layout.branches, 1)  # positions are one for all rows
        row = self._row(place, per_branch)
        branch = "cond" if place < per_branch else "null"
        # What is no number reaches earlier steps too, through an attention that weighs it with zero.
        at = first + step if edited_from is None else max(first + step, edited_from)
        if self.traced:
            why = "See what the trace writes; if it writes nothing, the model's weights or dtype are at fault."
        elif self.written:
            why = (
                "This is after the interventions of this run: lower the strength of that row, or load the model in a "
                "wider dtype; if it happens without them too, the model's weights are at fault."
            )
        else:
            why = "No intervention had written anything: the model's weights are at fault, or its dtype is too narrow."
        raise ActivationOverflow(
            f"activations overflowed in row {row}, {self._when(at)}: infinite or NaN at {name} (branch {branch}). {why}"
        )

    def _refuse_all_forbidden(self, scores: Float[Tensor, "branch_sequence vocab"], step: int) -> None:
        """Raise if a codebook of some row has no code left, those of either branch taken together."""
        left = scores.unflatten(0, (self.layout.branches, -1)).isneginf().any(0).logical_not().any(-1)
        if bool(left.all()):
            return
        place, per_row = int(left.long().argmin()), len(left) // len(self.layout.rows)
        raise InputError(
            f"every code of codebook {place % per_row} is forbidden (a logit of -inf) in row "
            f"{self._row(place, len(left))}, {self._when(step)}: leave at least one to draw."
        )

    def _row(self, place: int, per_branch: int) -> int:
        return self.layout.rows[place % per_branch * len(self.layout.rows) // per_branch]

    def _when(self, step: int) -> str:
        return f"step {step} ({step / self.frame_rate:.2f} s)" if step >= 0 else f"the prefix, position {step}"


def checked_logits(
    logits: Float[Tensor, "row codebook step vocab"], frame_rate: float, rows: Sequence[int] | None = None
) -> Float[Tensor, "row codebook step vocab"]:
    """Logits that probabilities, ranks or gradients are computed from; `rows` are the caller's (default: 0, 1, ...).

    Raises:
        ActivationOverflow: naming the first row, codebook and step where one is NaN or infinite (-inf forbids a code).
    """
    if logits.sum(dtype=torch.float32).item() < math.inf:
        return logits
    broken = (logits.isnan() | logits.isposinf()).any(-1).nonzero().tolist()
    if broken:
        row, codebook, step = min(broken, key=lambda place: (place[2], place[0]))
        raise ActivationOverflow(
            f"logits are infinite or NaN in row {row if rows is None else rows[row]}, step {step} "
            f"({step / frame_rate:.2f} s), codebook {codebook}: nothing can be computed from them. An intervention is "
            "too strong, the model's weights are at fault, or its dtype is too narrow."
        )
    return logits


def _summed(value: Tensor) -> Tensor:
    """A number for each row and step that is not finite where a feature is not. Sums of half precision are taken in
    float32: in their own they would overflow long before a feature does. (Those of float32 do so where features come
    within their number of its largest, 3e38: past any use.)"""
    return value.flatten(2).sum(-1, dtype=torch.promote_types(value.dtype, torch.float32))
