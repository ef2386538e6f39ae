"""Stop a run whose activations become infinite or NaN, and report the site, row and step where this began.

A strength too large for the model's number format (or a broken weight) turns activations into infinity or NaN. The
model would still sample codes from them, and the clip would be meaningless noise. Once per step, before the next code
is drawn, `Watch` therefore checks the sum of the logits. Under transformers, which waits for the device at every step
anyway, this reads one pair of numbers from the device. The fast engine does not wait: it notes one number per step on
the device (`note`), reads the numbers of many steps at once, and repeats the steps that look wrong (`suspects`) with
the check above. A forward pass over given codes returns NaN as the bare model does, and code that computes a number
from logits rejects NaN (`checked_logits`).

An infinite or NaN value in the residual stream makes the logits of its own step NaN, through the final norm. Writes to
the stream are therefore only stored. If the logits become NaN, the stored writes show where the overflow began. Other
writes might not reach the logits: a weight might be zero, the step might not be the last of its forward pass, or a
later block might replace the value. These writes are summed over their features, which preserves infinity and NaN, and
the sums are checked along with the logits.
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
"""The only site where an infinite value is legitimate: a logit of -inf forbids its code (+inf is never allowed)."""
STREAM = frozenset(
    f"hook_{name}"
    for name in (
        "embed", "resid_pre", "attn_out", "resid_mid", "cross_attn_out", "resid_cross", "mlp_out", "resid_post",
    )
)  # fmt: skip
"""Sites whose values are the residual stream itself, or are added to the stream unchanged."""


class Watch(LogitsProcessor):
    """Checks the writes and logits of one batch. As a logits processor, it leaves the scores unchanged.

    `replaced` means that some edit overwrites values, so earlier writes can be missing from the stream. `traced` means
    that a trace can write values that this object does not see. Steps of the scores begin `origin` steps after the
    beginning of the clip; steps of writes count from the beginning of the clip. While `deferred` is set, writes are not
    stored, and steps are noted instead of checked.
    """

    def __init__(
        self, layout: Layout, frame_rate: float, replaced: bool = False, traced: bool = False, origin: int = 0
    ) -> None:
        self.origin = origin
        self.layout, self.frame_rate, self.replaced, self.traced = layout, frame_rate, replaced, traced
        self.written = self.deferred = False
        self.kept: list[tuple[Site | str, int, Tensor]] = []
        """The writes in order: whole values where the logits would reveal an overflow, and elsewhere sums over features
        "batch step"."""
        self.edited_from: int | None = None
        self.unseen: Tensor | None = None
        """The sum of the current step's writes that the logits might not reveal."""
        self._noted: list[tuple[int, Tensor]] = []

    def wrote(self, site: Site, value: Float[Tensor, "batch step ..."], start: int, edited_from: int = 0) -> None:
        """Record a value after its edits; `start` is its first step, and `edited_from` is the first edited step."""
        # This is called at every site and step, so names and final sums are computed only when needed.
        self.written = True
        revealed = value.shape[1] == 1 and site.hook in STREAM and not self.replaced
        if self.deferred:
            if not revealed and site.hook != LOGITS:
                total = value.sum(dtype=torch.float32)
                self.unseen = total if self.unseen is None else self.unseen + total
            return
        first = start if start > edited_from else edited_from
        if self.edited_from is None or first < self.edited_from:
            self.edited_from = first
        if revealed:
            self.kept.append((site, start, value))
        elif site.hook != LOGITS:
            self.kept.append((site, start, _summed(value)))

    def ended(self, site: str, stream: Float[Tensor, "batch step d_model"], start: int) -> None:
        """Check the residual stream of a run that stops before the logits."""
        self.kept.append((site, start, _summed(stream)))
        self.look()

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Check all writes since the last call, and the scores "sequence vocab" of the current step."""
        self.check(scores, input_ids.shape[-1] - 1)
        return scores

    def check(self, scores: Float[Tensor, "branch_sequence vocab"], step: int) -> None:
        """Check all writes since the last call, and the scores of a step."""
        if self.look(scores[:, None], step + self.origin) == -math.inf:
            self._refuse_all_forbidden(scores, step + self.origin)

    def note(self, scores: Float[Tensor, "branch_sequence vocab"], step: int) -> None:
        """Note the scores of a step and the writes before them, without reading a number from the device."""
        # A maximum is infinite or NaN if a logit is, and -inf if all codes of a codebook are forbidden.
        number = scores.amax(-1).sum()
        self._noted.append((step, number if self.unseen is None else number + self.unseen))
        self.unseen = None

    def suspects(self) -> list[int]:
        """Return the noted steps in which a value might be infinite or NaN, and forget all noted steps."""
        noted, self._noted = self._noted, []
        numbers = torch.stack([number for _, number in noted]).tolist() if noted else []
        return [step for (step, _), number in zip(noted, numbers, strict=True) if not math.isfinite(number)]

    def look(self, logits: Float[Tensor, "sequence step vocab"] | None = None, start: int = 0) -> float:
        """Stop the run if the logits, or any values written since the last check, are infinite or NaN.

        Returns:
            The sum of the logits, which is -inf if some logits forbid their code.

        Raises:
            ActivationOverflow: if a value is infinite or NaN; the message names the first site, row and step.
        """
        kept, edited_from = self.kept, self.edited_from
        self.kept, self.edited_from = [], None
        parts = [value.sum(dtype=torch.float32) for _, _, value in kept if value.ndim == 2]
        if logits is not None:
            parts.append(logits.sum(dtype=torch.float32))
        # One copy from the device. A sum is not finite if any summed value is not finite. If only a sum overflows, the
        # detailed check below finds nothing.
        sums = torch.stack([one.to(parts[-1].device) for one in parts]).tolist() if parts else []
        # -inf among the logits is legitimate, because processors and edits may forbid codes. The sum of -inf and +inf
        # is NaN.
        total = 0.0 if logits is None else sums.pop()
        if all(map(math.isfinite, sums)) and total < math.inf:
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
        # Report the earliest step, and the first row at that step. On the first axis of logits, a row's codebooks are
        # consecutive.
        entry, step = min(sound.logical_not().nonzero().tolist(), key=lambda found: (found[1], found[0]))
        per_branch = max(len(sound) // self.layout.branches, 1)  # position embeddings are shared by all rows
        row = self._row(entry, per_branch)
        branch = self.layout.halves[min(entry // per_branch, self.layout.branches - 1)]
        # NaN reaches earlier steps too, because an attention weight of zero times NaN is NaN.
        at = first + step if edited_from is None else max(first + step, edited_from)
        if self.traced:
            why = "Check what the trace writes; if it writes nothing, the model's weights or dtype are at fault."
        elif self.written:
            why = (
                "Interventions changed this run: lower the strength of that row, or load the model in a wider dtype; "
                "if activations also overflow without interventions, the model's weights are at fault."
            )
        else:
            why = "No intervention had written anything: the model's weights are at fault, or its dtype is too narrow."
        raise ActivationOverflow(
            f"activations overflowed in row {row}, {self._when(at)}: infinite or NaN at {name} (branch {branch}). {why}"
        )

    def _refuse_all_forbidden(self, scores: Float[Tensor, "branch_sequence vocab"], step: int) -> None:
        """Raise an error if all codes of a row's codebook are forbidden. A code is forbidden if either branch forbids
        it."""
        left = scores.unflatten(0, (self.layout.branches, -1)).isneginf().any(0).logical_not().any(-1)
        if bool(left.all()):
            return
        entry, per_row = int(left.long().argmin()), len(left) // len(self.layout.rows)
        raise InputError(
            f"every code of codebook {entry % per_row} is forbidden (a logit of -inf) in row "
            f"{self._row(entry, len(left))}, {self._when(step)}: leave at least one to draw."
        )

    def _row(self, entry: int, per_branch: int) -> int:
        return self.layout.rows[entry % per_branch * len(self.layout.rows) // per_branch]

    def _when(self, step: int) -> str:
        return f"step {step} ({step / self.frame_rate:.2f} s)" if step >= 0 else f"the prefix, position {step}"


def checked_logits(
    logits: Float[Tensor, "row codebook step vocab"], frame_rate: float, rows: Sequence[int] | None = None
) -> Float[Tensor, "row codebook step vocab"]:
    """Return the logits unchanged if probabilities, ranks or gradients can be computed from them.

    `rows` are the caller's row numbers for error messages (default: 0, 1, ...). A logit of -inf is allowed: it forbids
    its code.

    Raises:
        ActivationOverflow: if a logit is NaN or +inf; the message names the first row, codebook and step.
    """
    if logits.sum(dtype=torch.float32).item() < math.inf:
        return logits
    broken = (logits.isnan() | logits.isposinf()).any(-1).nonzero().tolist()
    if broken:
        row, codebook, step = min(broken, key=lambda entry: (entry[2], entry[0]))
        raise ActivationOverflow(
            f"logits are infinite or NaN in row {row if rows is None else rows[row]}, step {step} "
            f"({step / frame_rate:.2f} s), codebook {codebook}: nothing can be computed from them. An intervention is "
            "too strong, the model's weights are at fault, or its dtype is too narrow."
        )
    return logits


def _summed(value: Tensor) -> Tensor:
    """Sum over features: one number per row and step. The sum is not finite if any of its features is not finite.

    Half precision is summed in float32, because a half-precision sum would overflow long before a feature does. (A
    float32 sum overflows only if features approach 3e38 / n_features, far beyond useful values.)
    """
    return value.flatten(2).sum(-1, dtype=torch.promote_types(value.dtype, torch.float32))
