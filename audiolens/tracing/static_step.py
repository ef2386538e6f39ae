"""Repeat one step of a batch with tensors that stay in place: on a GPU as a CUDA graph.

For a few rows, a GPU computes the kernels of a step faster than the host launches them. A graph launches them all at
once. It needs the same kernels with tensors of the same shapes at every step. Attention therefore covers all positions
of the clip, under a mask that hides those that are not filled yet, and the position is itself a tensor.

Steps are repeated only while their edits do not depend on the step, nothing is recorded, and no code of the user runs
(`is_steady`). The graph is checked against the step that it was captured from. If capturing fails or gives other
scores, the step continues without a graph.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from audiolens.model.hooks import acting_hooks
from audiolens.tracing.overflow import Watch
from audiolens.tracing.plan import Run

DEVICES = ("cuda",)
"""The kinds of device on which steps are repeated."""
WARM_STEPS = 3
"""The number of steps that run before the graph is captured, in which libraries allocate what they keep."""
Compute = Callable[[Tensor, Tensor], Tensor]
"""The scores "branch_sequence vocab" of a step, from its column "row codebook 1" and its position "1"."""


def is_steady(run: Run, called: Iterable[nn.Module]) -> bool:
    """Whether the steps of a run repeat the same operations, given the modules that they call."""
    edits = [edit for point in run.points for edit in point.edits]
    hooked = any(acting_hooks(part) for module in called for part in module.modules())
    return run.recorder is None and not hooked and all(edit.is_steady for edit in edits)


class StaticSteps:
    """The steps of one batch after the first, in segments within which the same edits apply."""

    def __init__(
        self, compute: Compute, run: Run, watch: Watch, shape: tuple[int, int, int], device: torch.device
    ) -> None:
        self.compute, self.watch = compute, watch
        self.column = torch.zeros(shape, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        edits = [edit for point in run.points for edit in point.edits]
        # Spans count steps from the beginning of the clip, of which the run may be a later window.
        self.bounds = sorted({bound - run.origin for edit in edits for bound in (edit.start, edit.stop)})
        self._begin(-1)

    def _begin(self, segment: int) -> None:
        self.segment, self.taken = segment, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.scores = self.unseen = None

    def __call__(
        self, column: Int[Tensor, "row codebook 1"], step: int, position: int
    ) -> Float[Tensor, "branch_sequence vocab"]:
        """Return the scores of a step; `position` includes the prefix."""
        if (segment := bisect_right(self.bounds, step)) != self.segment:
            self._begin(segment)
        self.column.copy_(column)
        self.position.fill_(position)
        self.taken += 1
        if self.taken == WARM_STEPS + 1 and self.column.device.type == "cuda":
            self._capture()
        if self.graph is None or self.scores is None:
            return self.compute(self.column, self.position)
        with torch.cuda.device(self.column.device):
            self.graph.replay()
        self.watch.unseen = self.unseen
        return self.scores

    def _capture(self) -> None:
        """Capture the step as a graph, and keep the graph if it gives the same scores."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self.column.device):
                # Threads that decode or measure other clips may use the device meanwhile.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    scores = self.compute(self.column, self.position)
                unseen, self.watch.unseen = self.watch.unseen, None
                graph.replay()
                expected = self.compute(self.column, self.position)
                self.watch.unseen = None
                if torch.equal(scores, expected):
                    self.graph, self.scores, self.unseen = graph, scores, unseen
        except RuntimeError:
            self.watch.unseen = None
