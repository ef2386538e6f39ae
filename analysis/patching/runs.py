"""Pair clean and corrupted runs by matched prompts, check their inputs, and record them batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analysis.likelihood import Window, refuse_unequal
from analysis.patching.engine import PairBatch, Side, recorded_hooks
from analysis.patching.grid import Cell
from audiolens.checks import MOST_SEED, checked_count, checked_flags, in_order, shown
from audiolens.door import checked_kinds, guarded
from audiolens.errors import InputError, InputTypeError, PromptError
from audiolens.groups import takes
from audiolens.model import text, tokens
from audiolens.model.timeline import Real, Span, Timeline, codes_timeline
from audiolens.model.tokens import named_once
from audiolens.prompts import PromptSet
from audiolens.sound.codec import checked_codes
from audiolens.tracing.given_sound import codes_of
from audiolens.tracing.sampling import Sampling

if TYPE_CHECKING:
    from audiolens import AudioLens

N_PAIRS = 64
"""The smallest number of pairs that supports a claim about a few nats."""


@guarded
@dataclass(frozen=True, eq=False)
class Pairs:
    """Matched prompts, with codes generated from the clean prompts (`codes`) and from the corrupted ones (`history`).

    `clean` and `corrupted` differ only in the words for the concept.
    """

    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    codes: Int[Tensor, "pair codebook frame"]
    history: Int[Tensor, "pair codebook past"]

    def __post_init__(self) -> None:
        checked_kinds(self)
        sizes = {name: len(value) for name, value in vars(self).items()}
        if not self.clean or len(set(sizes.values())) > 1:
            raise InputError(f"{', '.join(f'{n} {name}' for name, n in sizes.items())}: expected one of each per pair.")

    def __len__(self) -> int:
        return len(self.clean)

    def __repr__(self) -> str:
        return f"Pairs({len(self)} of {self.codes.shape[-1]} frames; first {self.clean[0]!r} | {self.corrupted[0]!r})"


@guarded
@named_once
@takes("sampling", Sampling, keeps="all")
def pairs(
    lens: AudioLens,
    prompts: PromptSet,
    n: int = N_PAIRS,
    *,
    seconds: Real = 2.0,
    same_length: bool = False,
    turns: bool = False,
    guidance_scale: Real = 3.0,
    first_seed: int = 0,
    batch_size: int | None = 64,
    sampling: Sampling | None = None,
) -> Pairs:
    """Return pairs of matched prompts from a set, with codes of both sides generated from the pair's seed.

    The clean prompts are those of the positive pole. Pass `prompts.opposite` to use those of the negative pole instead.

    Args:
        lens: the model that generates the codes.
        prompts: a set whose poles are matched.
        n: number of pairs. If it exceeds the size of the set, prompts are repeated with other seeds.
        seconds: length of the codes, in seconds.
        same_length: keep only pairs whose prompts have the same number of tokens, as patching by token requires.
        turns: alternate which pole is the clean one. Use this only for metrics on codes, because gaps in measured sound
            would cancel in the mean.
        guidance_scale: guidance scale of the generation. Codes sampled under guidance follow the text more closely than
            the conditional branch alone predicts, which widens the gap.
        first_seed: both sides of pair i are generated from seed first_seed + i.
        batch_size: number of rows generated at a time.
        sampling: a `Sampling` instead of `guidance_scale` and, if it contains a clip length, `seconds`. Its temperature
            and top_k also apply.

    Raises:
        InputError, InputTypeError: if `prompts` is not a set with matched poles, or if `same_length` leaves no pair.
    """
    checked_flags(same_length=same_length, turns=turns)
    if not isinstance(prompts, PromptSet):
        raise InputTypeError(
            f"prompts={shown(prompts)}: expected a PromptSet, such as audiolens.prompts.load('tempo')."
        )
    n = checked_count("n", n)
    first_seed = checked_count("first_seed", first_seed, 0, MOST_SEED)
    if not prompts.matched:
        raise InputError(
            f"{prompts.concept}: its poles have different numbers of prompts, so none are matched: give the "
            "same number for each pole."
        )
    matched = list(zip(prompts.positive, prompts.negative, strict=True))
    if same_length:
        sizes = [[len(tokens) for tokens in lens.text_tokens(pair)] for pair in matched]
        matched = [pair for pair, (a, b) in zip(matched, sizes, strict=True) if a == b]
    if not matched:
        raise InputError(f"{prompts.concept}: no pair of matched prompts has the same number of tokens on both sides.")
    tokens.note_unread([prompt for pair in matched[:n] for prompt in pair], lens.tokenizer)
    chosen = [matched[i % len(matched)][:: -1 if turns and i % 2 else 1] for i in range(n)]
    sides = [tuple(pair[side] for pair in chosen) for side in (0, 1)]
    seeds = list(range(first_seed, first_seed + n))
    drawing = replace(sampling or Sampling(guidance_scale), seconds=seconds)
    made = [lens.generate(side, seeds=seeds, sampling=drawing, decode=False, batch_size=batch_size) for side in sides]
    return Pairs(sides[0], sides[1], made[0].codes, made[1].codes)


@dataclass(frozen=True, eq=False)
class Runs:
    """Both runs of every pair.

    `read` contains the codes that the clean and the corrupted run read, and `window` is the part that is scored.
    `places` replaces the tokens in the columns of a grid by tokens, which are otherwise counted from the first token in
    which the prompts of a pair differ.
    """

    lens: AudioLens
    clean: tuple[str | None, ...]
    corrupted: tuple[str | None, ...]
    codes: Int[Tensor, "pair codebook frame"]
    read: tuple[Int[Tensor, "pair codebook frame"], Int[Tensor, "pair codebook frame"]]
    window: Window
    sizes: tuple[tuple[int, ...], tuple[int, ...]]
    timeline: Timeline
    places: Int[Tensor, "pair column"] | None = None

    @classmethod
    def checked(
        cls, lens: AudioLens, clean: Any, corrupted: Any, codes: Any, seconds: Span | None, history: Any
    ) -> Runs:
        """Check the inputs and return the runs. No part of the model runs, except the codec if `codes` is audio."""
        if isinstance(codes, tuple | list):
            codes = codes_of(codes, lens.traced_model)
        ours, theirs, sizes = checked_prompts(lens, clean, corrupted)
        codes = checked_codes(codes, lens.config, len(ours)).to(lens.device)
        timeline = codes_timeline(codes, lens.config, lens.config.prefix(max(map(max, sizes))))
        window = Window.of(lens, codes, seconds)
        first, codes = window.first, window.cropped(codes)
        read = codes, codes
        if history is not None:
            own = checked_codes(history, lens.config, len(ours)).to(lens.device)
            if not first:
                raise InputError(
                    "history= is what the corrupted run reads before the scored window, but the window starts at 0 s: "
                    "score a later window, for instance with LogLikelihood(seconds=(1.0, 2.0))."
                )
            if own.shape[-1] < first:
                raise InputError(
                    f"history of {own.shape[-1]} frames: expected at least {first}, to reach the scored window."
                )
            read = codes, torch.cat([own[..., :first], codes[..., first:]], dim=-1)
        else:
            refuse_same(ours, theirs)
        return cls(lens, ours, theirs, codes, read, window, sizes, timeline)

    @property
    def steps(self) -> int:
        """The number of steps up to the last one that predicts a scored code."""
        return self.window.end + max(self.window.delays)

    @property
    def prefix(self) -> int:
        return self.lens.config.prefix(max(map(max, self.sizes)))

    @cached_property
    def offsets(self) -> tuple[Int[Tensor, "pair column"], tuple[str, ...]]:
        """The token of each pair in every column of a grid by tokens (-1 for none), and the names of the columns."""
        if self.places is not None:
            return self.places, tuple(map(str, range(self.places.shape[1])))
        return token_offsets(self.lens, self.clean, self.corrupted)

    def token_columns(self) -> tuple[str, ...]:
        if None in (*self.clean, *self.corrupted):
            raise PromptError("patching by token: a prompt is None, so it has no tokens; give a text on both sides.")
        self.refuse_unequal("patching by token")
        return self.offsets[1]

    def refuse_unequal(self, what: str) -> None:
        refuse_unequal(self.sizes, what)

    def clusters(self, given: Sequence[str] | None) -> tuple[str, ...]:
        return checked_clusters(given, self.clean, self.corrupted)

    def batches(self, size: int) -> Iterator[list[int]]:
        """Yield the batches of pairs that run together.

        In a family without a text mask (Melody), all pairs of a batch have the same number of tokens.
        """
        prefix = self.lens.config.prefix
        kinds: dict[tuple[int, int], list[int]] = {}
        for row, (a, b) in enumerate(zip(*self.sizes, strict=True)):
            kinds.setdefault((prefix(a), prefix(b)), []).append(row)
        for rows in kinds.values():
            for first in range(0, len(rows), size):
                yield rows[first : first + size]

    def batch(self, rows: Sequence[int], cells: Sequence[Cell], mode: str) -> PairBatch:
        """Return the recordings of both runs of the given pairs."""
        base, source = (1, 0) if mode == "denoising" else (0, 1)
        hooks = recorded_hooks(self.lens, cells)
        depths = [cell.layer for cell in cells if cell.layer is not None]
        above = range(min(depths, default=0), self.lens.config.n_layers)
        tokens = None
        if any(cell.token is not None for cell in cells):
            tokens = self.offsets[0][list(rows)].to(self.lens.device)
        return PairBatch(
            self.lens,
            self._side(base, rows, hooks[0], above),
            self._side(source, rows, hooks[1], sorted(set(depths)) or None),
            self.codes[list(rows)],
            self.window,
            self.steps,
            self._seen(base, rows),
            tokens,
        )

    def unpatched(self, rows: Sequence[int], cells: Sequence[Cell]) -> PairBatch:
        """Record the clean run alone of the given pairs, for cells that take their values from elsewhere."""
        depths = [cell.layer for cell in cells if cell.layer is not None]
        above = range(min(depths, default=0), self.lens.config.n_layers)
        base = self._side(0, rows, recorded_hooks(self.lens, cells)[0], above)
        codes = self.codes[list(rows)]
        return PairBatch(self.lens, base, base, codes, self.window, self.steps, self._seen(0, rows), None)

    def _side(self, which: int, rows: Sequence[int], hooks: Sequence[str], layers: Any) -> Side:
        lens, prefixed = self.lens, self.lens.config.has_prefix
        prompts = [(self.clean, self.corrupted)[which][row] for row in rows]
        logits, cache = lens.run_with_cache(
            prompts, self.read[which][list(rows)], sites=hooks, layers=layers, prefix=prefixed and bool(hooks)
        )
        prefix = lens.config.prefix(self.sizes[which][rows[0]])
        return Side(cache, prefix, self.window.each(logits, self.codes[list(rows)]))

    def _seen(self, which: int, rows: Sequence[int]) -> Bool[Tensor, "pair token"] | None:
        if self.lens.config.has_prefix:
            return None
        prompts = [(self.clean, self.corrupted)[which][row] for row in rows]
        sizes = [0 if prompts[i] is None else self.sizes[which][row] for i, row in enumerate(rows)]
        longest = max(self.sizes[which][row] for row in rows)
        seen = torch.arange(longest, device="cpu") < torch.tensor(sizes, device="cpu")[:, None]
        return None if bool(seen.all()) else seen.to(self.lens.device)


def checked_prompts(lens: AudioLens, clean: Any, corrupted: Any) -> tuple[tuple, tuple, tuple]:
    """Return the prompts of both sides and their token counts.

    Raises:
        PromptError: if one side has more prompts than the other.
    """
    ours, theirs = text.checked_prompts(clean), text.checked_prompts(corrupted)
    tokens.note_unread((*ours, *theirs), lens.tokenizer)
    one, other = (text.checked(side, lens.model, lens.tokenizer)[1] for side in (ours, theirs))
    if len(ours) != len(theirs):
        raise PromptError(f"{len(ours)} clean and {len(theirs)} corrupted prompts: give them pair by pair.")
    return ours, theirs, (tuple(one), tuple(other))


def refuse_same(clean: Sequence[Any], corrupted: Sequence[Any]) -> None:
    same = [row for row, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a == b]
    if same:
        raise InputError(
            f"pair {same[0]} has {shown(clean[same[0]])} on both sides, so nothing differs: give another corrupted "
            "prompt, or give the corrupted run its own codes with history=."
        )


def checked_clusters(given: Any, clean: Sequence[Any], corrupted: Sequence[Any]) -> tuple[str, ...]:
    if given is None:
        # Pairs with the same two prompts form one cluster, whichever of the two is the clean one.
        return tuple(" | ".join(sorted((str(a), str(b)))) for a, b in zip(clean, corrupted, strict=True))
    listed = tuple(map(str, in_order("clusters", given, "clusters")))
    if len(listed) != len(clean):
        raise InputError(f"{len(listed)} clusters for {len(clean)} pairs: give one per pair.")
    return listed


def token_offsets(
    lens: AudioLens, clean: Sequence[Any], corrupted: Sequence[Any]
) -> tuple[Int[Tensor, "pair column"], tuple[str, ...]]:
    """Return each pair's token in every column, counted from the pair's first differing token, and the column names.

    A column is named after its token if all pairs share that token.
    """
    sides = [lens.text_tokens([prompt])[0] for prompts in (clean, corrupted) for prompt in prompts]
    ours, theirs = sides[: len(clean)], sides[len(clean) :]
    marks = [next((i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), 0)
             for a, b in zip(ours, theirs, strict=True)]  # fmt: skip
    least = -max(marks)
    most = max(len(a) - mark for a, mark in zip(ours, marks, strict=True))
    positions = torch.full((len(ours), most - least), -1, dtype=torch.long, device="cpu")
    names = []
    for column, offset in enumerate(range(least, most)):
        spoken = set()
        for row, (a, b, mark) in enumerate(zip(ours, theirs, marks, strict=True)):
            position = mark + offset
            if 0 <= position < len(a):
                positions[row, column] = position
                spoken.add(a[position] if a[position] == b[position] else f"{a[position]}/{b[position]}")
        names.append(f"{offset:+d} {spoken.pop()}" if len(spoken) == 1 else f"{offset:+d}")
    return positions, tuple(names)
