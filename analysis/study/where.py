"""Before anything is steered, patch a few matched pairs of prompts block by block, to show where a concept acts.

`find` computes the grids and the attention that words receive, and `write` and `read` store and load them. They do not
decide where to steer; `analysis.placement` makes that decision.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from safetensors.numpy import load_file, save_file

from analysis import layer_attribution, patching
from analysis.attention.words import TextAttention, plain_token, to_text
from analysis.layer_attribution import LayerAttribution
from analysis.patching import PatchingResult
from analysis.placement import Placement
from audiolens.directions.directions import Directions
from audiolens.errors import InputError
from audiolens.files.bounded import read_header, read_object
from audiolens.files.json_shapes import refuse_other, tuples

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.prompts import PromptSet

_GRIDS = ("windows", "components", "heads")
_ARRAYS = ("patched", "clean", "corrupted")
_KEPT = tuple(one.name for one in fields(PatchingResult) if one.name not in (*_ARRAYS, "sound"))
_SHAPE = {
    "codebooks": [str], "layers": [(int, None)], "columns": [str], "spans": ([[float, float]], None), "by": str,
    "sites": [str], "mode": str, "metric": str, "unit": str, "scored": [float, float],
    "prompts": [[(str, None), (str, None)]], "clusters": [str], "n_bootstrap?": int, "n_permutations?": int,
    "seed?": int,
}  # fmt: skip
_WORDS = {"tokens": [str], "differs": [bool], "layers": [int], "heads": [int]}
MOST_WORDS = 16
"""Number of words whose attention is kept, the most frequent ones. A set of prompts has many that occur once."""


@dataclass(frozen=True, eq=False)
class WordWeights:
    """How much attention the words of the positive pole's prompts receive, relative to uniform attention.

    Attributes:
        relative: attention weight x number of tokens in the prompt, as the mean over steps and prompts. 1 is the value
            of uniform attention.
        tokens: the words, those in which the poles' prompts differ first, then the most frequent ones.
        differs: for each word, whether the matched prompts of the other pole lack it.
        layers, heads: the labels of the other two axes.

    A weight does not show that a head uses a word (see `TextAttention`).
    """

    relative: Float[np.ndarray, "token layer head"]
    tokens: tuple[str, ...]
    differs: tuple[bool, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per word, layer and head."""
        labels = pd.MultiIndex.from_product([self.tokens, self.layers, self.heads], names=["token", "layer", "head"])
        table = pd.DataFrame({"relative_weight": self.relative.ravel()}, index=labels).reset_index()
        return table.assign(differs=np.repeat(self.differs, len(self.layers) * len(self.heads)))


@dataclass(frozen=True, eq=False)
class Where:
    """Patching grids and attention weights over the same pairs of prompts.

    Attributes:
        windows: the grid of the residual stream, patched in one block and one time window per cell.
        components: the grid of the components of each block, patched over the whole clip.
        heads: the grid of the heads that read the text, patched over the whole clip.
        words: the attention that each word receives.
        reason: why a grid is missing, or an empty string. Folders of earlier versions lack `heads` and `words`.

    The grids do not show where the concept is computed (see the caveats of `PatchingResult`).
    """

    windows: PatchingResult | None = None
    components: PatchingResult | None = None
    reason: str = ""
    heads: PatchingResult | None = None
    words: WordWeights | None = None


def find(lens: AudioLens, sets: PromptSet, asked: Mapping[str, Any]) -> Where:
    """Patch matched pairs, and return the grids. `asked` contains the arguments of `patching.pairs`."""
    found: dict[str, Any] = {}
    try:
        pairs = patching.pairs(lens, sets, **asked)
        given = pairs.clean, pairs.corrupted, pairs.codes
        found["windows"] = patching.patch(lens, *given, progress=False)
        found["components"] = patching.patch(lens, *given, by="component", progress=False)
        found["heads"] = patching.patch(lens, *given, by="head", progress=False)
        found["words"] = _weighed(to_text(lens, pairs.clean, pairs.codes), pairs.corrupted, lens)
    except InputError as error:
        return Where(**found, reason=str(error))
    return Where(**found)


def _weighed(attention: TextAttention, others: Sequence[str | None], lens: AudioLens) -> WordWeights:
    """Return the attention of the words that differ between the poles, and of the most frequent other ones."""
    apart: Counter[str] = Counter()
    common: Counter[str] = Counter()
    for mine, theirs in zip(attention.tokens, lens.text_tokens(list(others)), strict=True):
        present = {*map(plain_token, theirs)}
        for token in dict.fromkeys(map(plain_token, mine)):
            (common if token in present else apart)[token] += 1
    ranked = dict.fromkeys(token for counts in (apart, common) for token, _ in counts.most_common())
    chosen = tuple(ranked)[:MOST_WORDS]
    sizes = np.array([len(tokens) for tokens in attention.tokens], dtype=float)
    relative = [np.nanmean(attention.word(token).mean(-1) * sizes, axis=-1) for token in chosen]
    return WordWeights(
        np.stack(relative), chosen, tuple(token in apart for token in chosen), attention.layers, attention.heads
    )


def evidence(directions: Directions, found: Where | None, placement: Placement | None) -> LayerAttribution:
    """Gather the evidence per block for one figure, from the placement if there is one, and otherwise from patching."""
    given: dict[str, Any] = {"norm": directions}
    units = {"separation": "held-out AUC"}
    if directions.evidence is not None:
        given["separation"] = pd.Series(directions.evidence.auc.numpy(), index=list(directions.layers))
    if placement is not None:
        given |= {one.name: one for one in placement.evidence.evidence}
    elif found is not None and found.components is not None:
        table = found.components.to_frame()
        table = table[table["codebook"] == found.components.names[-1]]
        for site, name in (("cross_attn_out", "patching cross-attention"), ("resid_post", "patching the stream")):
            mine = table[table["component"] == site]
            if len(mine):
                given[name], units[name] = mine[["layer", "effect", "low", "high"]], "nats"
    return layer_attribution.gather(units=units, **given)


def write(found: Where, folder: Path) -> None:
    """Write the grids as safetensors and JSON."""
    facts: dict[str, Any] = {"reason": found.reason}
    for name in _GRIDS:
        grid: PatchingResult | None = getattr(found, name)
        if grid is not None:
            arrays = {key: np.ascontiguousarray(getattr(grid, key)) for key in _ARRAYS}
            save_file(arrays, folder / f"{name}.safetensors")
            facts[name] = {key: getattr(grid, key) for key in _KEPT}
    if found.words is not None:
        facts["words"] = {key: getattr(found.words, key) for key in _WORDS}
        save_file({"relative": np.ascontiguousarray(found.words.relative)}, folder / "words.safetensors")
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")


def read(folder: Path) -> Where:
    """Read the grids that `write` stored."""
    facts = read_object(folder / "facts.json")
    shape = {"reason": str, **{f"{name}?": _SHAPE for name in _GRIDS}, "words?": _WORDS}
    refuse_other(folder / "facts.json", facts, shape)
    grids: dict[str, Any] = {}
    for name in _GRIDS:
        if name in facts:
            values = {key: tuples(value) for key, value in facts[name].items()}
            arrays = _arrays(folder / f"{name}.safetensors", facts[name])
            grids[name] = PatchingResult(**arrays, **{key: values[key] for key in _KEPT if key in values})
    if "words" in facts:
        labels = {key: tuples(value) for key, value in facts["words"].items()}
        sizes = tuple(len(labels[key]) for key in ("tokens", "layers", "heads"))
        if len(labels["differs"]) != sizes[0]:
            raise InputError(f"{folder / 'facts.json'} cannot be used: expected {sizes[0]} values of differs.")
        relative = _loaded(folder / "words.safetensors", {"relative": sizes}, "words, layers and heads")["relative"]
        grids["words"] = WordWeights(relative, **labels)
    return Where(**grids, reason=facts["reason"])


def _arrays(path: Path, facts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Read the arrays of a grid, after checking that their sizes match its facts."""
    sizes = (len(facts["clusters"]), len(facts["codebooks"]), len(facts["layers"]), len(facts["columns"]))
    expected = {"patched": sizes, "clean": sizes[:2], "corrupted": sizes[:2]}
    return _loaded(path, expected, "pairs, codebooks, layers and columns")


def _loaded(path: Path, expected: Mapping[str, tuple[int, ...]], axes: str) -> dict[str, np.ndarray]:
    """Read arrays of numbers, after checking that they have the expected names and shapes."""
    read_header(path)
    found = load_file(path)
    shapes = {name: (array.shape, array.dtype.kind) for name, array in found.items()}
    if shapes != {name: (shape, "f") for name, shape in expected.items()}:
        raise InputError(f"{path} cannot be used: expected a grid of {next(iter(expected.values()))} {axes}.")
    return found
