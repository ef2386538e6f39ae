"""Which rows of a batch are whose: guidance halves, codebooks, and the invokes of a trace.

Inside a guided run a tensor's first axis may count rows, or rows of both branches (conditional first, then null).
nnsight's own batcher narrows only what counts plain rows, so two invokes would read and edit each other's under
guidance; `RowBatcher` knows both counts. A site whose first axis counts something else is served `entire`, and knows
its rows itself.
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
"""Exact runs hold this many rows, padded with repeats, whatever was asked for."""


@dataclass(frozen=True)
class Layout:
    """Which rows a batch holds.

    Attributes:
        rows: the caller's row at each place, of `total` rows.
        halves: the branches in the order of the batch; one without guidance.
        kept: how many places are real; the rest is padding.
        prefix: how many positions precede step 0 in each of these rows.
        first: the caller's row with which recordings begin.
    """

    rows: tuple[int, ...]
    total: int
    halves: tuple[Half, ...]
    kept: int
    prefix: int = 0
    first: int = 0

    @cached_property
    def places(self) -> slice | Tensor:
        """Where the real rows belong in what is recorded: a slice where they follow one another."""
        real = tuple(row - self.first for row in self.rows[: self.kept])
        if real == tuple(range(real[0], real[0] + len(real))):
            return slice(real[0], real[0] + len(real))
        return torch.tensor(real, device="cpu")

    @property
    def branches(self) -> int:
        """2 with guidance, else 1."""
        return len(self.halves)

    def of(self, values: Tensor) -> Tensor:
        """A tensor with one entry per row of the caller, as one entry per row of the whole batch."""
        return values[torch.tensor(self.rows, device=values.device)].repeat(self.branches, *[1] * (values.ndim - 1))

    def branch(self, branch: str) -> Tensor:
        """The batch rows that belong to a branch, as a mask."""
        return torch.tensor([branch in (half, "both") for half in self.halves for _ in self.rows], device="cpu")


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
    halves: tuple[Half, ...],
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
            yield Layout(tuple(padded), len(sizes), halves, len(part), kind[0]), kind[1]


def chunks(
    sizes: Sequence[int], *, halves: tuple[Half, ...], batch_size: int, prefix: Callable[[int], int]
) -> Iterator[tuple[Layout, ...]]:
    """The runs of each `batch_size` rows that follow one another: one, or one a prefix."""
    for first in range(0, len(sizes), batch_size):
        part = sizes[first : first + batch_size]
        yield tuple(
            replace(layout, rows=tuple(first + row for row in layout.rows), total=len(sizes), first=first)
            for layout, _ in batches(part, halves=halves, exact=False, batch_size=None, prefix=prefix)
        )


def in_order(parts: Sequence[Tensor], layouts: Sequence[Layout], axis: int) -> Tensor:
    """The runs' results, with the rows along `axis`, as one tensor in the caller's order of rows."""
    whole = torch.cat(list(parts), dim=axis)
    order = torch.tensor([row for layout in layouts for row in layout.rows], device="cpu")
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


def of_branch(values: Tensor, halves: tuple[Half, ...], branch: str) -> Tensor:
    """Of values "half ...", those of one branch; of both, the conditional branch first whatever the batch's order."""
    if branch != "both":
        return values[halves.index(branch)]
    order = sorted(range(len(halves)), key=lambda place: halves[place])
    return values if order == list(range(len(halves))) else values[order]


class RowBatcher(Batcher):
    """nnsight's batcher for a model whose rows are doubled by guidance.

    A tensor belongs to the batch when its first axis counts `total` rows times {1, 2} branches. An invoke is served its
    own rows of every branch, in the same layout, and its edits go back to just these. `copies` are the values read in
    this run that are not the model's own tensors, as they were served; `asked` the site that each invoke had last.
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
        """One call from the prompts and codes of every invoke; a plan of the lens's own comes ready-made."""
        if self.request is None:
            return super().assemble(fn)
        prompts = [prompt for inputs, _ in self.invokes for prompt in checked_prompts(*inputs)]
        codes = [kwargs.get("codes") for _, kwargs in self.invokes]
        self.prefix, ready = self.request.inputs(prompts, codes)
        return (), ready

    def _halves(self, tensor: Tensor) -> int | None:
        """How many branches the first axis of a tensor holds, or `None` if it does not count rows."""
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
    """Have an invoke served whole tensors meanwhile, and what it puts back taken as whole ones."""
    group, mediator.batch_group = mediator.batch_group, None
    try:
        yield
    finally:
        mediator.batch_group = group


class Copies:
    """Copies that reads in a trace were given, by invoke and name. Writing into one would change nothing in the model.

    One is held until the same is read in a later forward, or is assigned.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[int, str], tuple[Tensor, int]] = {}

    def keep(self, invoke: int, name: str, value: Tensor) -> Tensor:
        """The value as it is handed out; an earlier one of this name must not have been written into."""
        self._refuse(name, *self._held.pop((invoke, name), (value, None)))
        if value.is_inference():
            # Only other tensors count the writes into them.
            with torch.inference_mode(False):
                value = value.clone()
        self._held[invoke, name] = value, value._version
        return value

    def assigned(self, invoke: int, name: str) -> None:
        """What was written into it has reached the model."""
        self._held.pop((invoke, name), None)

    def check(self) -> None:
        """Refuse writes into any of them.

        Raises:
            InputError: naming the site.
        """
        for (_, name), (value, version) in self._held.items():
            self._refuse(name, value, version)

    def _refuse(self, name: str, value: Tensor, version: int | None) -> None:
        if version is not None and value._version != version:
            raise InputError(
                f"{name}: the value read in a trace was changed in place, but it is a copy, so the model would not "
                "change: assign the changed value (lens.site(...).value = changed), or write into value.clone()."
            )
