"""Map rows to batches: guidance branches, codebooks, and the invokes of a trace.

Under guidance, the first axis of a tensor has one entry per row, or one per row and branch. nnsight's own batcher
slices only tensors with one entry per row, so under guidance two invokes would read and edit each other's rows.
`RowBatcher` handles both layouts. If the first axis of a value counts something else, the whole value is returned
(`entire`), and the code of that site selects the rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from nnsight.intervention.batching import Batcher
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from audiolens.checks import checked_count
from audiolens.errors import InputError
from audiolens.model.config import LensConfig
from audiolens.model.families.family import Half
from audiolens.model.sites import Site
from audiolens.model.text import BUCKET, checked_prompts
from audiolens.model.timeline import delay

EXACT_ROWS = 16
"""The number of rows in every batch with `exact=True`; a smaller batch is filled up with repeated rows."""


@dataclass(frozen=True)
class Layout:
    """The rows of one batch, and their order.

    Attributes:
        rows: the caller's row number for each row of the batch.
        total: the number of rows in the caller's input.
        halves: the guidance branches in batch order; without guidance there is only one.
        kept: the number of real rows, which come first; the other rows are padding.
        prefix: the number of positions before step 0, which all rows of the batch share.
        first: the caller's row number for index 0 of the recordings.
    """

    rows: tuple[int, ...]
    total: int
    halves: tuple[Half, ...]
    kept: int
    prefix: int = 0
    first: int = 0

    @cached_property
    def indices(self) -> slice | Tensor:
        """Indices of the real rows in the recordings; a slice if they are consecutive."""
        real = tuple(row - self.first for row in self.rows[: self.kept])
        if real == tuple(range(real[0], real[0] + len(real))):
            return slice(real[0], real[0] + len(real))
        return torch.tensor(real, device="cpu")

    @property
    def branches(self) -> int:
        """The number of guidance branches: 2 with guidance, else 1."""
        return len(self.halves)

    def of(self, values: Tensor) -> Tensor:
        """Turn a tensor with one entry per row of the caller into a tensor with one entry per row and branch of the
        batch."""
        return values[torch.tensor(self.rows, device=values.device)].repeat(self.branches, *[1] * (values.ndim - 1))

    def part(self, rows: slice) -> "Layout":
        """Return the layout of some rows of this batch."""
        if rows == slice(0, len(self.rows)):
            return self
        mine = self.rows[rows]
        return replace(self, rows=mine, kept=len(mine))

    def branch(self, branch: str) -> Tensor:
        """Return a mask of the batch rows that belong to a branch."""
        return torch.tensor([branch in (half, "both") for half in self.halves for _ in self.rows], device="cpu")


def checked_batch_size(batch_size: int | None) -> int | None:
    """Check a batch size as `whole_batch_size` does; `None` (all rows at once) is allowed."""
    return None if batch_size is None else whole_batch_size(batch_size)


def whole_batch_size(batch_size: int) -> int:
    """Check that a batch size is a positive number of rows, and return it.

    Raises:
        InputError: if the batch size is not a whole number, or is less than 1.
    """
    return checked_count("batch_size", batch_size)


def batches(
    sizes: Sequence[int],
    *,
    halves: tuple[Half, ...],
    exact: bool,
    batch_size: int | None,
    prefix: Callable[[int], int] = lambda _: 0,
) -> Iterator[tuple[Layout, int | None]]:
    """Yield the layout of each batch, and the text length to pad to (`None` pads to the longest prompt).

    `sizes` are the prompts' lengths in tokens. `prefix` maps a prompt's length in tokens to the number of positions it
    takes in the decoder's own sequence. Text in that sequence has no attention mask, so all rows of a batch have the
    same prefix length and no text is padded. With `exact=True`, batches have a fixed number of rows and a text length
    that depends on each prompt alone, so that a row is computed by the same kernels regardless of the other rows in its
    batch.
    """
    checked_batch_size(batch_size)

    def alike(size: int) -> tuple[int, int | None]:
        """Return what rows of one batch must share: the prefix length, and the text length to pad to."""
        before = prefix(size)
        return before, -(-size // BUCKET) * BUCKET if exact and not before else None

    kinds = [alike(size) for size in sizes]
    step = EXACT_ROWS if exact else batch_size or len(sizes)
    for kind in sorted(set(kinds)):
        mine = [row for row, own in enumerate(kinds) if own == kind]
        for first in range(0, len(mine), step):
            part = mine[first : first + step]
            padded = part + part[:1] * (EXACT_ROWS - len(part)) if exact else part
            yield Layout(tuple(padded), len(sizes), halves, len(part), kind[0]), kind[1]


def chunks(
    sizes: Sequence[int], *, halves: tuple[Half, ...], batch_size: int, prefix: Callable[[int], int]
) -> Iterator[tuple[Layout, ...]]:
    """For every `batch_size` consecutive rows, yield the layouts of their runs, one per prefix length."""
    for first in range(0, len(sizes), batch_size):
        part = sizes[first : first + batch_size]
        yield tuple(
            replace(layout, rows=tuple(first + row for row in layout.rows), total=len(sizes), first=first)
            for layout, _ in batches(part, halves=halves, exact=False, batch_size=None, prefix=prefix)
        )


def in_order(parts: Sequence[Tensor], layouts: Sequence[Layout], axis: int) -> Tensor:
    """Concatenate the runs' results along the row `axis`, in the caller's order of rows."""
    whole = torch.cat(list(parts), dim=axis)
    order = torch.tensor([row for layout in layouts for row in layout.rows], device="cpu")
    if bool((order.diff() > 0).all()):
        return whole
    return whole.index_select(axis, order.argsort().to(whole.device))


def read_columns(
    codes: Int[Tensor, "row codebook frame"] | None, config: LensConfig, layout: Layout, device: torch.device
) -> Int[Tensor, "sequence column"]:
    """Return the decoder's input for a batch: the start token and the delayed codes, without the last column.

    As in transformers, rows and codebooks share the first axis, which is repeated for each branch.
    """
    if codes is None:
        columns = torch.full((len(layout.rows), config.n_codebooks, 1), config.pad_code, device=device)
    else:
        columns = delay(codes[list(layout.rows)], config.delays, config.pad_code)[..., :-1]
    return columns.flatten(0, 1).repeat(layout.branches, 1)


def start_columns(codes: Int[Tensor, "row codebook frame"], config: LensConfig) -> Int[Tensor, "sequence column"]:
    """Return the start token and the frames to continue, undelayed because transformers' `generate` delays them."""
    return torch.cat([torch.full_like(codes[..., :1], config.pad_code), codes], dim=-1).flatten(0, 1)


def of_branch(values: Tensor, halves: tuple[Half, ...], branch: str) -> Tensor:
    """Select one branch from values "branch ...", or both with the conditional branch first."""
    if branch != "both":
        return values[halves.index(branch)]
    return values if list(halves) == sorted(halves) else values.flip(0)


class RowBatcher(Batcher):
    """nnsight's batcher for a model in which guidance doubles the rows.

    The first axis of a tensor counts rows if its size is `total` rows times 1 or 2 branches. An invoke receives its own
    rows of every branch in the same layout, and its edits change only these rows. `copies` contains the values read in
    this run that are copies rather than the model's own tensors. `asked` contains the site that each invoke requested
    last.
    """

    def __init__(self, envoy: Any, kwargs: dict | None = None) -> None:
        super().__init__(envoy, kwargs)
        self.request: Any = self.kwargs.get("request")
        self.halves: tuple[Half, ...] = self.request.halves if self.request is not None else ("cond",)
        self.branches = len(self.halves)
        self.prefix = 0
        self.copies = Copies()
        self.asked: dict[int, Site] = {}

    def assemble(self, fn: Any) -> tuple:
        """Build one call from the prompts and codes of all invokes, unless its arguments are already complete."""
        if self.request is None:
            return super().assemble(fn)
        prompts = [prompt for inputs, _ in self.invokes for prompt in checked_prompts(*inputs)]
        codes = [kwargs.get("codes") for _, kwargs in self.invokes]
        self.prefix, ready = self.request.inputs(prompts, codes)
        return (), ready

    def _halves(self, tensor: Tensor) -> int | None:
        """Return how many branches a tensor's first axis covers, or `None` if that axis does not count rows."""
        counts = (branches for branches in (self.branches, 1) if tensor.shape[:1] == (branches * self.total,))
        return next(counts, None)

    def _narrow_tensor(self, tensor: Tensor, group: list) -> Tensor:
        branches = self._halves(tensor)
        if branches is None:
            return tensor
        mine = tensor.unflatten(0, (branches, self.total)).narrow(1, *group)
        return mine[0] if branches == 1 else mine.flatten(0, 1)

    def _widen_tensor(self, full: Tensor, group: list, edited: Tensor) -> Tensor:
        branches = self._halves(full)
        if branches is None:
            return edited
        start, size = group
        rows = full.unflatten(0, (branches, self.total))
        mine = edited.unflatten(0, (branches, size))
        return torch.cat([rows[:, :start], mine, rows[:, start + size :]], dim=1).flatten(0, 1)


@contextmanager
def entire(mediator: Mediator) -> Iterator[None]:
    """Within this context, an invoke reads and assigns whole tensors instead of its own rows."""
    group, mediator.batch_group = mediator.batch_group, None
    try:
        yield
    finally:
        mediator.batch_group = group


class Copies:
    """The copies of values that a trace has read, keyed by invoke and name.

    Writing into a copy does not change the model. A copy is stored until the same value is assigned, or is read again
    in a later forward pass.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[int, str], tuple[Tensor, int]] = {}

    def keep(self, invoke: int, name: str, value: Tensor) -> Tensor:
        """Register a copy and return it.

        Raises:
            InputError: if the previous copy of the same value was written into.
        """
        self._refuse(name, *self._held.pop((invoke, name), (value, None)))
        if value.is_inference():
            # Inference tensors do not count in-place writes.
            with torch.inference_mode(False):
                value = value.clone()
        self._held[invoke, name] = value, value._version
        return value

    def assigned(self, invoke: int, name: str) -> None:
        """Forget a copy, because an assigned value has now reached the model."""
        self._held.pop((invoke, name), None)

    def check(self) -> None:
        """Check that no copy was written into.

        Raises:
            InputError: if a copy was written into; the message names its site.
        """
        for (_, name), (value, version) in self._held.items():
            self._refuse(name, value, version)

    def _refuse(self, name: str, value: Tensor, version: int | None) -> None:
        if version is not None and value._version != version:
            raise InputError(
                f"{name}: the value read in a trace was changed in place, but it is a copy, which does not change the "
                "model: assign the changed value (lens.site(...).value = changed), or write into value.clone()."
            )
