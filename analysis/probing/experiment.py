"""Cross-validate probes of a label at every block or head, with controls and baselines.

`probe` reads one vector per row at every block or head (`features.py`). It cross-validates probes on these vectors with
real and with shuffled labels (`probes.py`). The rows come from a `Dataset`, a recorded cache, prompts, or an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from joblib import Parallel, delayed

from analysis.probing import features
from analysis.probing.dataset import Dataset
from analysis.probing.features import Baseline, FeaturePosition, Features
from analysis.probing.labels import Task, checked_labels, groups_of, task_of
from analysis.probing.probes import KINDS, CrossValidation, Kind, Probe, Scored, target_of
from analysis.probing.result import ProbeResult
from analysis.resampling import Resampling
from audiolens.cache.activation_cache import ActivationCache
from audiolens.checks import (
    MOST_JOBS,
    MOST_SEED,
    checked_amount,
    checked_count,
    checked_flags,
    in_order,
    one_or_listed,
    shown,
)
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.groups import takes
from audiolens.interventions import Branch
from audiolens.model import provenance
from audiolens.model.provenance import Provenance
from audiolens.model.sites import head_numbers, listed_layers
from audiolens.model.tokens import named_once
from audiolens.model.weight_hash import weights_hash
from audiolens.tracing.recording import Reading

if TYPE_CHECKING:
    from torch import Tensor

    from audiolens.lens import AudioLens


@guarded
@named_once
@takes("resampling", Resampling, n_permutations="n_shuffles")
@takes("reading", Reading, single=["sites"], sites="site")
def probe(
    lens: AudioLens | None,
    data: Dataset | ActivationCache | Sequence[str | None] | np.ndarray,
    labels: Sequence[Any] | None = None,
    *,
    kind: Kind | None = None,
    task: Task | None = None,
    site: str = "resid_post",
    layers: int | Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    position: FeaturePosition = "mean",
    branch: Branch = "cond",
    codes: Int[Tensor, "row codebook frame"] | None = None,
    groups: Sequence[Any] | None = None,
    folds: int | Sequence[int] = 5,
    n_shuffles: int = 20,
    penalty: float | None = None,
    n_components: int | None = None,
    baselines: Sequence[Baseline] | None = None,
    n_bootstrap: int = 500,
    batch_size: int = 16,
    n_jobs: int = 1,
    seed: int = 0,
    progress: bool = False,
    reading: Reading | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
    resampling: Resampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> ProbeResult:
    """Return cross-validated scores of probes that predict a label at every block (Alain and Bengio, 2016).

    Args:
        lens: the model. It can be `None` for a cache or an array, but then there are no baselines or directions.
        data: a `Dataset`, prompts with `labels`, a cache recorded with `reduce=`, or an array "layer row feature". For
            prompts, clips are generated unless `codes` are given or `position` is before any music.
        labels: one label per row, if `data` has no labels.
        kind: "ridge" (classes or a quantity), "logistic" (classes only), or "mlp" (either). "ridge" is solved in closed
            form. Its penalty is chosen on the training side, so that features of different widths are comparable.
        task: "classification" or "regression". By default, strings, Booleans and integers with few distinct values are
            treated as classes.
        site, layers: the site and layers to probe. Without `heads`, all heads of a site are probed together.
        heads: probe each of these heads separately.
        position: "mean" (over all steps), "first" (the start token, which sees the text alone), "last", "max", or
            (from, to) in seconds for the mean over that span. "eos" is possible if the text is in the decoder's own
            sequence.
        branch: the guidance branch that is read; "both" is the mean of the two branches.
        groups: the group of each row. Rows of a group stay on one side of a split. By default, rows that share a prompt
            or a clip form a group. An array has no prompts or clips, so without `groups` each of its rows counts as
            independent, and the result states this.
        folds: number of folds, or the fold of each row.
        n_shuffles: number of label shuffles. p is at least 1 / (n_shuffles + 1).
        penalty, n_components: see `analysis.probing.probes.Probe`.
        baselines: "mel", "codec" or both. The default is both if there is sound.
        n_jobs: number of processes among which the layers and heads are divided.
        reading: a `Reading` instead of `site`, `layers`, `heads` and `branch`. `position` still determines which steps
            are read.
        resampling: a `Resampling` instead of `n_shuffles` (its `n_permutations`), `n_bootstrap` and `seed`.

    Raises:
        InputError: (or a subclass) if a split separates rows of one group, if labels do not match the rows or are too
            few, if the model lacks the site, layer or head, or if the activations are the same in every row.
    """
    checked_flags(progress=progress)
    penalty, n_components, n_bootstrap, n_jobs, seed = _checked_numbers(
        penalty, n_components, n_bootstrap, n_jobs, seed
    )
    rows, given = _rows(lens, data, labels, codes, groups, position, heads, site, layers)
    chosen_task = task or task_of(rows.labels)
    checked = _checked_kind(kind, chosen_task)
    if chosen_task == "regression" and rows.labels.dtype.kind not in "biuf":
        raise InputError("task='regression' needs numeric labels, and these are text: use task='classification'.")
    classes = tuple(map(str, np.unique(rows.labels))) if chosen_task == "classification" else ()
    fitted = Probe(checked, chosen_task, len(classes), penalty, n_components)
    target = target_of(rows.labels, classes)
    own = one_or_listed("folds", folds)
    given_folds = isinstance(own, list)
    plan = CrossValidation.of(
        target,
        np.asarray(rows.groups),
        task=chosen_task,
        names=classes,
        n_folds=2 if given_folds else own,
        folds=own if given_folds else None,
        n_shuffles=n_shuffles,
        seed=seed,
    )
    found = given
    if found is None:
        assert lens is not None
        found = features.of_model(
            lens, rows, site=site, layers=layers, heads=heads, position=position, branch=branch,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
    _check_values(found)
    chosen = _sounds(baselines, rows, lens, position)
    without = {} if lens is None else {name: features.of_sound(lens, rows, name, position) for name in chosen}
    todo = [*found.values, *(one.values[0] for one in without.values())]
    scored = Parallel(n_jobs=n_jobs)(delayed(plan.scored)(values, fitted, n_bootstrap, seed) for values in todo)
    everything = list[Scored](scored)  # pyright: ignore[reportArgumentType]
    return ProbeResult(
        scored=tuple(everything[: len(found.sites)]),
        sites=found.sites,
        baselines=dict(zip(without, everything[len(found.sites) :], strict=True)),
        labels=rows.labels,
        groups=plan.groups,
        folds=plan.folds,
        classes=classes,
        probe=fitted,
        name=rows.name,
        unit=rows.unit,
        vectors=None
        if fitted.kind == "mlp"
        else np.stack([_vectors(fitted, values, target) for values in found.values]),
        lengths=found.lengths,
        meta=None if lens is None else _meta(lens, data, rows, found, fitted, position, branch),
        grouped=bool(rows.grouped),
    )


def _rows(
    lens: AudioLens | None,
    data: Any,
    labels: Any,
    codes: Any,
    groups: Any,
    position: FeaturePosition,
    heads: Any,
    site: str,
    layers: Any,
) -> tuple[Dataset, Features | None]:
    """Return the rows to probe, and their activations if `data` contains them."""
    if isinstance(data, Dataset):
        if labels is not None or codes is not None or groups is not None:
            raise InputError("a Dataset already has labels, codes and groups: change them in the Dataset.")
        if lens is None:
            raise InputError("a Dataset needs a model to read it: give the lens.")
        return data, None
    if labels is None:
        raise InputError("no labels: give one per row.")
    if isinstance(data, ActivationCache):
        if lens is not None and data.model and data.model != lens.name:
            raise InputError(f"the cache was recorded from {shown(data.model)}, but the lens has {shown(lens.name)}.")
        chosen = None if layers is None else data.numbered(layers)
        found = _held(features.of_cache(data, site, each_head=None if heads is None else True), site, chosen, heads)
        prompts = data.prompts or (None,) * found.values.shape[1]
    elif isinstance(data, np.ndarray | torch.Tensor):
        if heads is not None:
            raise InputError("heads= selects heads of a model or a cache, but an array has none: leave it out.")
        found = features.of_array(data, layers)
        prompts = (None,) * found.values.shape[1]
    else:
        if lens is None:
            raise InputError("prompts need a model to read them: give the lens.")
        if isinstance(data, str) or not isinstance(data, Sequence):
            raise InputError(f"data={type(data).__name__}: expected a Dataset, a cache, prompts, or an array.")
        if codes is None and position in ("first", "eos"):
            rows = len(data)
            return Dataset(checked_labels(labels, rows), tuple(data), groups=groups_of(groups, rows)), None
        return Dataset.from_prompts(lens, data, labels, codes=codes, groups=groups), None
    if codes is not None:
        raise InputError("codes= needs prompts, and these activations have already been recorded: leave it out.")
    checked = checked_labels(labels, len(prompts))
    return Dataset(checked, prompts, groups=groups_of(groups, len(checked))), found


def _held(found: Features, site: str, layers: Any, heads: Any) -> Features:
    """Return the features of the requested layers and heads of a cache."""
    keep = np.full(len(found.sites), True)
    for name, asked, held in (
        ("layers", None if layers is None else listed_layers(layers), [probed.layer for probed in found.sites]),
        ("heads", None if heads is None else head_numbers(heads), [probed.head for probed in found.sites]),
    ):
        if asked is None:
            continue
        known = [number for number in dict.fromkeys(held) if number is not None]
        if not asked or not set(asked) <= set(known):
            there = ", ".join(map(str, known)) or "none"
            raise InputError(f"{name}={asked}: the cache contains {there} of {site}; choose among these.")
        keep &= [number in asked for number in held]
    sites = tuple(probed for probed, kept in zip(found.sites, keep, strict=True) if kept)
    return Features(found.values[keep], found.lengths[keep], sites, found.site)


def _checked_numbers(
    penalty: Any, n_components: Any, n_bootstrap: Any, n_jobs: Any, seed: Any
) -> tuple[float | None, int | None, int, int, int]:
    """Return the numbers as Python numbers, because scikit-learn and joblib do not accept torch's numbers."""
    return (
        None if penalty is None else checked_amount("penalty", penalty, above=0),
        None if n_components is None else checked_count("n_components", n_components),
        checked_count("n_bootstrap", n_bootstrap, 0),
        # As in joblib, -1 means all cores.
        -1 if n_jobs == -1 else checked_count("n_jobs", n_jobs, 1, MOST_JOBS),
        checked_count("seed", seed, 0, MOST_SEED),
    )


def _checked_kind(kind: Any, task: Any) -> Kind:
    if task not in ("classification", "regression"):
        raise InputError(f"task={shown(task)}: expected 'classification' or 'regression'.")
    if kind is None:
        return "ridge"
    if kind not in KINDS:
        raise InputError(f"kind={shown(kind)}: expected one of {', '.join(KINDS)}.")
    if kind == "logistic" and task == "regression":
        raise InputError("kind='logistic' needs classes: use 'ridge' or 'mlp' for a quantity.")
    return kind


def _check_values(found: Features) -> None:
    if not np.isfinite(found.values).all():
        raise InputError("activations contain NaN or infinite values: expected finite numbers.")
    if not np.ptp(found.values, axis=1).any():
        raise InputError(
            "the activations are the same in every row at every layer or head. Rows that differ only in their prompts "
            "have different activations only after the text has been read: choose other layers, or give each row its "
            "own codes."
        )


def _sounds(
    baselines: Sequence[Baseline] | None, rows: Dataset, lens: AudioLens | None, position: FeaturePosition
) -> tuple[Baseline, ...]:
    if baselines is None:
        audible = rows.codes is not None and lens is not None and position not in ("first", "eos")
        # A clip that all rows share contains no information about the labels.
        alone = rows.codes is not None and bool((rows.codes == rows.codes[:1]).all())
        return ("mel", "codec") if audible and not alone else ()
    chosen = in_order("baselines", baselines, "baselines")
    for name in chosen:
        if not isinstance(name, str) or name not in ("mel", "codec"):
            raise InputError(f"baselines={shown(name)}: expected 'mel' or 'codec'.")
    if chosen and lens is None:
        raise InputError("baselines are computed from sound, which needs the lens and a Dataset: give baselines=().")
    return chosen


def _vectors(fitted: Probe, values: np.ndarray, target: np.ndarray) -> Float[np.ndarray, "output feature"]:
    """Return the weights, rescaled to the signed difference between the poles' means along the weights."""
    weights = fitted.weights(values, target)
    units = weights / np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), np.finfo(float).tiny)
    made = []
    for place, unit in enumerate(units):
        pole = target == place if fitted.task == "classification" else target > np.median(target)
        made.append(unit * (unit @ (values[pole].mean(0) - values[~pole].mean(0))))
    return np.stack(made)


def _meta(
    lens: AudioLens, data: Any, rows: Dataset, found: Features, fitted: Probe, position: FeaturePosition, branch: Branch
) -> Provenance:
    made = isinstance(data, Sequence) and rows.codes is not None
    if isinstance(data, ActivationCache):
        # A cache stores the position at which it was recorded.
        position = cast(FeaturePosition, data.reduce or position)
        branch = cast(Branch, data.branch)
    device, dtype = provenance.computed_on(lens)
    return Provenance(
        model=lens.name,
        weights=weights_hash(lens.model),
        n_layers=lens.config.n_layers,
        site=found.site,
        position=position if isinstance(position, str) else (float(position[0]), float(position[1])),
        branch=branch,
        source="codes" if rows.codes is not None or made else "start",
        seconds=None if rows.codes is None else rows.codes.shape[-1] / lens.config.frame_rate,
        estimator=f"{fitted.kind} probe",
        prompts=provenance.prompts_hash(rows.prompts, ()),
        label=rows.name,
        revision=getattr(lens.model.config, "_commit_hash", None),
        versions=provenance.versions(),
        device=device,
        dtype=dtype,
    )
