"""Which rows of a batch are whose: guidance halves, codebooks, and the invokes of a trace.

Inside a guided run a tensor's first axis may count rows, rows of both branches (conditional first, then null),
or either of these times the codebooks. nnsight's own batcher narrows only what counts plain rows, so two invokes
would read and edit each other's under guidance; `RowBatcher` knows the four counts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from nnsight.intervention.batching import Batcher
from torch import Tensor

from audiolens.checks import checked_count
from audiolens.families import LensConfig
from audiolens.text import BUCKET, checked_prompts
from audiolens.timeline import delay

EXACT_ROWS = 16
"""Exact runs hold this many rows, padded with repeats, whatever was asked for."""

IN_PLACE = "_audiolens_in_place"
"""Marks an edited tensor whose rows go back into the tensor they were read from."""


@dataclass(frozen=True)
class Layout:
    """Which rows a batch holds: `rows[i]` is the caller's row at place i, of `total` rows; the first `kept`
    places are real, the rest padding. `branches` is 2 under guidance (conditional first), else 1. What is recorded
    begins with the caller's row `first`. `prefix` is how many positions stand before step 0 in each of these rows."""

    rows: tuple[int, ...]
    total: int
    branches: int
    kept: int
    prefix: int = 0
    first: int = 0

    @cached_property
    def places(self) -> slice | Tensor:
        """Where the real rows belong in what is recorded: a slice where they follow one another."""
        real = tuple(row - self.first for row in self.rows[: self.kept])
        if real == tuple(range(real[0], real[0] + len(real))):
            return slice(real[0], real[0] + len(real))
        return torch.tensor(real)

    def of(self, values: Tensor) -> Tensor:
        """A tensor with one entry per row of the caller, as one entry per row of the whole batch."""
        return values[torch.tensor(self.rows)].repeat(self.branches, *[1] * (values.ndim - 1))

    def branch(self, branch: str) -> Tensor:
        """The batch rows that belong to a branch, as a mask."""
        size = len(self.rows)
        mask = torch.zeros(self.branches * size, dtype=torch.bool)
        mask[: size if branch == "cond" else None] = True
        if branch == "null":
            mask[:size] = False
        return mask


def checked_batch_size(batch_size: int | None) -> int | None:
    """As `whole_batch_size`; `None`, all rows at once, passes."""
    return None if batch_size is None else whole_batch_size(batch_size)


def whole_batch_size(batch_size: int) -> int:
    """A number of rows.

    Raises:
        InputError: if it is no whole number, or under 1.
    """
    return checked_count("batch_size", batch_size)


def batches(
    sizes: Sequence[int],
    *,
    guided: bool,
    exact: bool,
    batch_size: int | None,
    prefix: Callable[[int], int] = lambda _: 0,
) -> Iterator[tuple[Layout, int | None]]:
    """The rows of each run, and the text length to pad to (`None`: the longest prompt's).

    `sizes` are the prompts' lengths in tokens; `prefix` says how many positions a prompt of so many tokens takes in
    the decoder's own sequence. There the text has no mask, so that a batch holds rows of one prefix, and none is
    padded. Exact batches have a fixed number of rows, and a text length that depends on each prompt alone: a row then
    meets the same kernels in any company.
    """
    checked_batch_size(batch_size)

    def alike(size: int) -> tuple[int, int | None]:
        """What the rows of one run share: the prefix, and the length to pad to."""
        before = prefix(size)
        return before, -(-size // BUCKET) * BUCKET if exact and not before else None

    kinds = [alike(size) for size in sizes]
    step = EXACT_ROWS if exact else batch_size or len(sizes)
    for kind in sorted(set(kinds)):
        mine = [row for row, own in enumerate(kinds) if own == kind]
        for first in range(0, len(mine), step):
            part = mine[first : first + step]
            padded = part + part[:1] * (EXACT_ROWS - len(part)) if exact else part
            yield Layout(tuple(padded), len(sizes), 2 if guided else 1, len(part), kind[0]), kind[1]


def chunks(
    sizes: Sequence[int], *, guided: bool, batch_size: int, prefix: Callable[[int], int]
) -> Iterator[tuple[Layout, ...]]:
    """The runs of each `batch_size` rows that follow one another: one, or one a prefix."""
    for first in range(0, len(sizes), batch_size):
        part = sizes[first : first + batch_size]
        yield tuple(
            replace(layout, rows=tuple(first + row for row in layout.rows), total=len(sizes), first=first)
            for layout, _ in batches(part, guided=guided, exact=False, batch_size=None, prefix=prefix)
        )


def in_order(parts: Sequence[Tensor], layouts: Sequence[Layout], axis: int) -> Tensor:
    """The runs' results, with the rows along `axis`, as one tensor in the caller's order of rows."""
    whole = torch.cat(list(parts), dim=axis)
    order = torch.tensor([row for layout in layouts for row in layout.rows])
    if bool((order.diff() > 0).all()):
        return whole
    return whole.index_select(axis, order.argsort().to(whole.device))


def read_columns(
    codes: Int[Tensor, "row codebook frame"] | None, config: LensConfig, layout: Layout, device: torch.device
) -> Int[Tensor, "sequence column"]:
    """What the decoder reads of a batch: the start token and the delayed codes, without the column nothing follows.

    Rows and codebooks share the first axis, as transformers has it, once for each branch.
    """
    if codes is None:
        columns = torch.full((len(layout.rows), config.n_codebooks, 1), config.pad_code, device=device)
    else:
        columns = delay(codes[list(layout.rows)], config.delays, config.pad_code)[..., :-1]
    return columns.flatten(0, 1).repeat(layout.branches, 1)


def start_columns(
    codes: Int[Tensor, "row codebook frame"], config: LensConfig, layout: Layout
) -> Int[Tensor, "sequence column"]:
    """The start token and the frames that a batch is to continue, undelayed: transformers' `generate` delays them."""
    mine = codes[list(layout.rows)]
    return torch.cat([torch.full_like(mine[..., :1], config.pad_code), mine], dim=-1).flatten(0, 1)


class RowBatcher(Batcher):
    """nnsight's batcher for a model whose rows are doubled by guidance and multiplied by codebooks.

    A tensor belongs to the batch when its first axis counts `total` rows times {1, 2} branches times {1, codebooks};
    floats of two axes are the position embeddings, "step d_model", which are every row's. An invoke is served its own
    rows of every branch, in the same layout, and its edits go back to just these.
    """

    def __init__(self, envoy: Any, kwargs: dict | None = None) -> None:
        super().__init__(envoy, kwargs)
        self.request: Any = self.kwargs.get("request")
        self.branches = self.request.branches if self.request is not None else 1
        self.codebooks = envoy.n_codebooks
        self.prefix = 0

    def assemble(self, fn: Any) -> tuple:
        """One call from the prompts and codes of every invoke; a plan of the lens's own comes ready-made."""
        if self.request is None:
            return super().assemble(fn)
        prompts = [prompt for inputs, _ in self.invokes for prompt in checked_prompts(*inputs)]
        codes = [kwargs.get("codes") for _, kwargs in self.invokes]
        self.prefix, ready = self.request.inputs(prompts, codes)
        return (), ready

    def _shape(self, tensor: Tensor) -> tuple[int, int] | None:
        """(branches, rows a row) of a batched tensor's first axis, or `None` if it is not batched."""
        if not tensor.ndim or _positions(tensor):
            return None
        for branches in (self.branches, 1):
            for each in (1, self.codebooks):
                if tensor.shape[0] == branches * each * self.total:
                    return branches, each
        return None

    def _narrow_tensor(self, tensor: Tensor, group: list) -> Tensor:
        shape = self._shape(tensor)
        if shape is None:
            return tensor
        branches, each = shape
        start, size = group
        rows = tensor.unflatten(0, (branches, self.total * each))
        mine = rows.narrow(1, start * each, size * each)
        return mine[0] if branches == 1 else mine.flatten(0, 1)

    def _widen_tensor(self, full: Tensor, group: list, edited: Tensor) -> Tensor:
        if _positions(full):
            full = full.expand(self.branches * self.total, -1, -1)
        shape = self._shape(full)
        if shape is None:
            return edited
        branches, each = shape
        start, size = group
        rows = full.unflatten(0, (branches, self.total * each))
        mine = edited.unflatten(0, (branches, size * each))
        if getattr(edited, IN_PLACE, False):
            # The block keeps this very tensor for its skip connection: another one would not reach it.
            rows[:, start * each : (start + size) * each].copy_(mine)
            return full
        before, after = rows[:, : start * each], rows[:, (start + size) * each :]
        return torch.cat([before, mine, after], dim=1).flatten(0, 1)


def _positions(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and tensor.is_floating_point()
