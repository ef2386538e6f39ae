"""Pair two runs over the same codes under different prompts, and attribute their difference batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.attribution.agreement import Agreement, CheckedCell, patched, patched_together, reached
from analysis.attribution.gradients import Metric, Pass, backward, scored
from analysis.likelihood import Window, checked_rows, refuse_unequal
from analysis.site_grid import GridSite, grid_sites, spans
from audiolens.errors import InputError
from audiolens.lens import AudioLens
from audiolens.model.sites import Site
from audiolens.model.text import checked_prompts, lengths, token_limit
from audiolens.model.timeline import Span
from audiolens.model.tokens import note_unread
from audiolens.sound.codec import checked_codes
from audiolens.tracing.batching import whole_batch_size

TEXT = "hook_text_states"

Towards = Literal["denoising", "noising"]


@dataclass(frozen=True, eq=False)
class Part:
    """The attributions of some rows, as arrays "codebook row place head" by full site name (`cells`).

    The codebook axis has length 1 if codebooks are summed.
    """

    rows: np.ndarray
    own: Float[np.ndarray, "row codebook"]
    other: Float[np.ndarray, "row codebook"]
    cells: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Pairing:
    """The checked inputs of a comparison. `codes` are cropped to the frames that the metric's window needs."""

    lens: AudioLens
    clean: tuple[str | None, ...]
    corrupted: tuple[str | None, ...]
    towards: Towards
    codes: Tensor
    sizes: tuple[int, ...]
    groups: Mapping[str, tuple[GridSite, ...]]
    metric: Metric

    @classmethod
    def checked(
        cls,
        lens: AudioLens,
        clean: Any,
        corrupted: Any,
        codes: Any,
        *,
        sites: Sequence[str] | str,
        layers: int | Sequence[int] | None,
        seconds: Span | None,
        metric: Metric | None,
        towards: Towards,
        along_text: bool,
    ) -> Pairing:
        """Check every argument before the model runs, and return the pairing."""
        codes = checked_codes(codes, lens.config)
        sides = [checked_prompts(given, len(codes)) for given in (clean, corrupted)]
        note_unread((*sides[0], *sides[1]), lens.tokenizer)
        prompts = [checked_rows(lens, side, codes)[0] for side in sides]
        if prompts[0] == prompts[1]:
            raise InputError("clean and corrupted prompts are the same: there is no difference to attribute.")
        groups = grid_sites(lens, sites, layers)
        if "logits" in groups:
            raise InputError("the metric is computed from hook_logits, so name an earlier site.")
        prefixed = lens.config.has_prefix
        if along_text and prefixed:
            raise InputError(
                f"method='integrated' interpolates between the text states of two prompts, but in {lens.config.family} "
                "the text is a prefix without such a site: use method='gradient'."
            )
        on_text = [short for short, group in groups.items() if group[0].on_text]
        reason = None
        if prefixed:
            reason = f"in {lens.config.family} the length of the text shifts every step"
        elif along_text:
            reason = "method='integrated' interpolates token by token"
        elif on_text:
            reason = f"the cells of {on_text[0]} are tokens (other sites have steps)"
        limit = token_limit(lens.model, lens.tokenizer)
        sizes = [lengths(given, lens.tokenizer, limit) for given in prompts]
        if reason is not None:
            refuse_unequal(sizes, reason)
        window = Window.of(lens, codes, seconds) if metric is None else metric
        codes = window.cropped(codes) if isinstance(window, Window) else codes
        return cls(lens, prompts[0], prompts[1], towards, codes, tuple(sizes[0]), groups, window)

    @property
    def own(self) -> tuple[str | None, ...]:
        """The prompts of the run that is patched."""
        return self.corrupted if self.towards == "denoising" else self.clean

    @property
    def other(self) -> tuple[str | None, ...]:
        """The prompts of the run that supplies the activations."""
        return self.clean if self.towards == "denoising" else self.corrupted

    @property
    def sites(self) -> dict[str, GridSite]:
        """The sites by full name, in the model's order."""
        mine = {site.name: site for group in self.groups.values() for site in group}
        return {name: mine[name] for name in self.lens.sites() if name in mine}

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Yield the rows of each pass. If the text has no mask, all rows of a pass have texts of the same length."""
        whole_batch_size(size)
        prefixed = self.lens.config.has_prefix
        kinds = np.asarray(self.sizes if prefixed else [0] * len(self.sizes))
        for kind in np.unique(kinds):
            rows = np.flatnonzero(kinds == kind)
            yield from (rows[first : first + size] for first in range(0, len(rows), size))

    def kept_bytes(self, per_codebook: bool) -> float:
        """Return the bytes that a pass keeps per pair: activations of both runs, and gradients, at all sites."""
        config, family = self.lens.config, self.lens.traced_model.family
        positions = self.lens.timeline(self.codes.shape[-1]).steps + config.prefix(max(self.sizes))
        forms = [family.form(Site.of(site.name).hook) for group in self.groups.values() for site in group]
        values = sum(positions * prod(int(size or positions) for size in form.features(config)) for form in forms)
        return values * self.lens.dtype.itemsize * (4 + (config.n_codebooks if per_codebook else 1))

    def part(self, rows: np.ndarray, steps: int, per_codebook: bool) -> Part:
        """Return the attributions of some pairs, from one gradient or from `steps` gradients between the two texts."""
        own, other, codes = self._rows(rows)
        names = list(self.sites)
        logits, theirs = self.lens.run_with_cache(other, codes, sites=names)
        base = backward(self.lens, own, codes, names, self.metric, per_codebook=per_codebook)
        gradients = self._along(base, own, other, codes, steps, per_codebook) if steps else base.gradients
        cells = {}
        for name, site in self.sites.items():
            difference = theirs[name].to(base.values[name]).float() - base.values[name].float()
            cells[name] = site.summed(gradients[name].float() * difference).double().cpu().numpy()
        scores = scored(self.metric, logits, codes.to(logits.device))
        return Part(rows, base.scores.double().cpu().numpy(), scores.double().cpu().numpy(), cells)

    def agreement(
        self, attributed: Mapping[str, np.ndarray], *, check: int, pairs: int, cells: int, seed: int
    ) -> Agreement:
        """Patch a uniform sample of each site's cells, and return how the effects agree with `attributed`.

        `attributed` contains arrays "layer pair codebook place head".
        """
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.permutation(len(self.own))[:pairs])
        drawn: list[tuple[CheckedCell, float]] = []
        for short, group in self.groups.items():
            values = attributed[short][:, rows]
            tokens = group[0].cell_unit == "token"
            there = min(self.sizes[row] for row in rows) if tokens else values.shape[3]
            cuts = [(token, token + 1) for token in range(there)] if tokens else spans(there, cells)
            heads = range(values.shape[4])
            every = [(layer, cut, head) for layer in range(len(group)) for cut in cuts for head in heads]
            for number in np.sort(rng.permutation(len(every))[:check]):
                at, cut, head = every[number]
                predicted = values[at, :, :, cut[0] : cut[1], head].sum((1, 2)).mean()
                cell = CheckedCell(group[at], cut[0], cut[1], head if group[at].heads else None)
                drawn.append((cell, float(predicted)))
        exact = self._exact(rows, [cell for cell, _ in drawn])
        table = [
            {
                "site": cell.site.short,
                "layer": -1 if cell.site.layer is None else cell.site.layer,
                "start": cell.start,
                "stop": cell.stop,
                "head": -1 if cell.head is None else cell.head,
                "attributed": predicted,
                "exact": float(effect.sum(1).mean()),
            }
            for (cell, predicted), effect in zip(drawn, exact, strict=True)
        ]
        return Agreement.of(pd.DataFrame(table), len(rows))

    def _exact(self, rows: np.ndarray, cells: Sequence[CheckedCell]) -> list[Float[np.ndarray, "row codebook"]]:
        """Return the change of the metric under the patch of each cell."""
        own, other, codes = self._rows(rows)
        together = [cell for cell in cells if reached(cell.site, self.metric)]
        alone = [cell for cell in cells if not reached(cell.site, self.metric)]
        found: dict[CheckedCell, np.ndarray] = {}
        if together and isinstance(self.metric, Window):
            effects = patched_together(self.lens, own, other, codes, together, self.metric)
            found |= zip(together, effects, strict=True)
        if alone:
            sites = [name for name in self.sites if any(name == cell.site.name for cell in alone)]
            logits, mine = self.lens.run_with_cache(own, codes, sites=sites)
            theirs = self.lens.run_with_cache(other, codes, sites=sites)[1]
            base = scored(self.metric, logits, codes.to(logits.device)).double().cpu().numpy()
            effects = patched(self.lens, own, codes, mine.tensors, theirs.tensors, alone, self.metric) - base
            found |= zip(alone, effects, strict=True)
        return [found[cell] for cell in cells]

    def _rows(self, rows: np.ndarray) -> tuple[list[str | None], list[str | None], Tensor]:
        return (
            [self.own[row] for row in rows],
            [self.other[row] for row in rows],
            self.codes[torch.as_tensor(rows, device=self.codes.device)],
        )

    def _along(
        self,
        base: Pass,
        own: Sequence[str | None],
        other: Sequence[str | None],
        codes: Tensor,
        steps: int,
        per_codebook: bool,
    ) -> dict[str, Tensor]:
        """Return the mean gradients at the midpoints of equal steps between the two prompts' text states."""
        ends = [self.lens.run_with_cache(list(prompts), None, sites=TEXT)[1][TEXT] for prompts in (own, other)]
        names = list(base.gradients)
        total = {name: torch.zeros_like(base.gradients[name], dtype=torch.float32) for name in names}
        for step in range(steps):
            states = ends[0] + (step + 0.5) / steps * (ends[1] - ends[0])
            there = backward(
                self.lens, own, codes, names, self.metric, text_states=states, per_codebook=per_codebook
            )  # fmt: skip
            for name in names:
                total[name] += there.gradients[name].float() / steps
        return total
