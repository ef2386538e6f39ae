"""Every estimator of a direction behind one function: `al.estimate(..., method=...)`; `al.estimators()` lists them.

Most estimators only need samples, one vector per prompt. One reading of the model (`d.samples`) therefore serves for
comparing all of them. Each has a file of its own in this folder; `docs/directions.md` states when to use which.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor

from audiolens.checks import checked_amount, checked_flags, shown
from audiolens.directions import by_measure, gradient, leace, pair_component, probe_weights, rfm
from audiolens.directions.difference_in_means import difference_in_means
from audiolens.directions.directions import Directions
from audiolens.directions.fitted import Fit, Fitted, estimated
from audiolens.directions.labelling import Target
from audiolens.directions.pole_reader import checked_site
from audiolens.directions.samples import Samples
from audiolens.directions.trained import trained
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, nearest
from audiolens.lens import AudioLens
from audiolens.model.tokens import naming_once

Method = Literal[
    "difference_in_means", "mean_centred", "principal_component", "probe", "ridge", "leace", "rfm", "by_measure",
    "gradient",
]  # fmt: skip


def _means(values: Tensor, target: Target) -> Fitted:
    wide = values.double()
    return Fitted(wide[target.positive].mean(0) - wide[~target.positive].mean(0), exact=True)


def _centred(values: Tensor, target: Target) -> Fitted:
    """The positive mean minus the mean over everything, in which both groups weigh the same."""
    return Fitted(_means(values, target).vector / 2, exact=True)


def _leace(values: Tensor, target: Target, *, shrinkage: float | None = None) -> Fitted:
    return Fitted(leace.fit(values[None], target.positive, (0,), _shrinkage(shrinkage)).reader[0])


def _shrinkage(value: float | None) -> float | None:
    weight = None if value is None else checked_amount("shrinkage", value)
    if weight is not None and not 0 <= weight <= 1:
        raise InputError(f"shrinkage={shown(value)}: expected a weight from 0 to 1, or None to choose it.")
    return weight


@dataclass(frozen=True)
class _Estimator:
    """One estimator: its name in provenance, what it is in a line, and how it fits samples, if it only needs these.

    `least` is the number of samples per group that it needs. `curve` says that refitting is cheap, and `heads` that it
    can fit every head of a site by itself.
    """

    name: str
    line: str
    fit: Fit | None = None
    least: int = 2
    curve: bool = True
    quantities: bool = False
    options: tuple[str, ...] = ()
    heads: bool = True

    @property
    def own(self) -> tuple[str, ...]:
        """The options that only this estimator takes."""
        return self.options or _keywords(self.fit)


def _keywords(function: Callable[..., Any] | None) -> tuple[str, ...]:
    if function is None:
        return ()
    return tuple(one.name for one in inspect.signature(function).parameters.values() if one.kind is one.KEYWORD_ONLY)


_READING = tuple(inspect.signature(difference_in_means).parameters)[3:]
_MEASURED = tuple(name for name in _keywords(by_measure.read) if name != "clips_per_prompt")
_METHODS: Mapping[str, _Estimator] = {
    "difference_in_means": _Estimator(
        "difference in means", "positive mean minus negative mean (Marks and Tegmark 2023)", _means, least=1
    ),
    "mean_centred": _Estimator(
        "mean-centred", "one pole's mean minus that of neutral prompts (Jorgensen et al. 2023)", _centred, least=1
    ),
    "principal_component": _Estimator(
        "pca of pairs", "first principal component of the differences of matched prompts (RepE, Zou et al. 2023)",
        pair_component.principal_component, least=1,
    ),
    "probe": _Estimator(
        "probe weights", "weights of a logistic regression (Alain and Bengio 2016)", probe_weights.logistic
    ),
    "ridge": _Estimator(
        "ridge weights", "weights of a ridge regression, also on numbers", probe_weights.ridge, quantities=True
    ),
    "leace": _Estimator(
        "leace", "the direction that LEACE reads, with its eraser for al.Erase (Belrose et al. 2023)", _leace,
        heads=False,
    ),
    "rfm": _Estimator(
        "rfm", "what a kernel predictor depends on, also where the means coincide (Radhakrishnan et al. 2024)",
        rfm.direction, least=rfm.FEWEST, curve=False, quantities=True, heads=False,
    ),
    "by_measure": _Estimator(
        "by measure", "clips of the model, sorted by what is measured in them; no poles needed",
        options=("prompts", "measure", "fit", "quantile", "clips_per_prompt"),
    ),
    "gradient": _Estimator(
        "gradient", "trained to make the other pole's clips likelier (Subramani et al. 2022)",
        options=tuple(one.name for one in fields(gradient.Training)), heads=False,
    ),
}  # fmt: skip


@guarded
def estimators() -> dict[str, str]:
    """Return every method of `estimate`, with a line on what it does and the options that it takes."""
    found = {}
    for name, one in _METHODS.items():
        options = f"; options: {', '.join(one.own)}" if one.own else ""
        found[name] = one.line + options
    return found


@guarded
def estimate(
    lens: AudioLens | None = None,
    positive: Sequence[str | None] | None = None,
    negative: Sequence[str | None] | None = None,
    method: Method = "difference_in_means",
    *,
    samples: Samples | None = None,
    labels: Any = None,
    towards: str | int | float | None = None,
    keep_samples: bool = True,
    **options: Any,
) -> Directions:
    """Estimate a direction at every layer with one of several methods, from prompts or from samples.

    With `lens`, the model is read as by `al.difference_in_means`, whose arguments (site, position, codes, neutral,
    seconds, label, ...) are accepted. With `samples=d.samples`, nothing runs. Vectors point towards the positive pole
    and, unless the method states otherwise, are scaled to the length of the difference in means along them, so that a
    strength of 1 is the same step for every method.

    Methods, with their own options (`al.estimators()` lists them):
        "difference_in_means": the positive mean minus the negative one.
        "mean_centred": the positive mean minus that of the neutral prompts (`neutral=`, instead of `negative`). From
            samples of two poles, it is half the difference in means.
        "principal_component": the first component of the differences between matched prompts.
        "probe": logistic regression; `penalty` (`None`: the number of features).
        "ridge": ridge regression; `penalty` (`None`: chosen by cross-validation).
        "leace": what LEACE reads before it erases the concept; `shrinkage` (`None`: Ledoit and Wolf). The result has an
            `eraser`, which `al.Erase` applies.
        "rfm": an eigenvector of the average gradient outer product of a kernel regression; `bandwidth`, `ridge` and
            `iterations` (numbers, or lists from which held-out prompts choose), `component` (0: the top one),
            `held_out` (0.25) and `seed` (0). If the means coincide (`d.evidence.means_p`), the vector is scaled to
            twice the samples' standard deviation along it, and its sign means little.
        "by_measure": clips of `prompts=` are generated (`clips_per_prompt`, `seconds` = 4), and `measure=` is measured
            in them. `fit="quantile"` subtracts the means of the top and bottom `quantile` (0.25) of the clips.
            `fit="ridge"` fits a ridge regression to the measured values.
        "gradient": trained on the loss of each pole's own clips, or on those in `codes=` or `audio=` (a pair), for each
            of the `layers` separately; `steps`, `learning_rate`, `max_norm`, `held_out`, `patience`, `every`,
            `train_batch` and `seed`. A strength of 1 is the trained vector.

    Args:
        samples: the samples of directions that were read with `keep_samples=True`.
        labels: labels of the samples, instead of their poles: Booleans; text or numbers of several classes with
            `towards`; or a quantity ("ridge" and "rfm").
        towards: with several classes, the class to which the direction points. "rfm" predicts all classes at once, and
            the other methods separate this class from the rest.
        keep_samples: store the samples with the result.

    Raises:
        InputError: (or a subclass) before a model runs, if the method is unknown, an option is not one of its own,
            prompts or samples are missing, labels are of one class or not finite, or there are too few samples.
    """
    checked_flags(keep_samples=keep_samples)
    chosen = _checked(method, options)
    if (lens is None) == (samples is None):
        raise InputError("give either lens= with prompts, or samples= of directions read with keep_samples=True.")
    own = {name: value for name, value in options.items() if name in chosen.own}
    reading = {name: value for name, value in options.items() if name not in own}
    with naming_once():
        if lens is None:
            found = _of_samples(samples, method, own, reading, labels, towards, positive, negative)
        elif labels is not None or towards is not None:
            raise InputError("labels= and towards= are for samples=: with prompts, the labels are the two poles.")
        elif not chosen.heads and checked_site(lens, reading.get("site", "resid_post"), reading.get("layers"))[2]:
            raise InputError(_no_heads(method, reading["site"]))
        elif method == "by_measure":
            found = _of_measure(lens, own, reading, positive, negative)
        elif method == "gradient":
            found = trained(lens, positive, negative, gradient.Training(**own), reading)
        else:
            read = _read(lens, positive, negative, method, reading)
            found = _fitted(read.samples, method, own)
            if method == "mean_centred":
                # The other prompts were neutral, so that the whole difference is the direction.
                found = replace(found, vectors=read.vectors)
    return found if keep_samples else replace(found, samples=None)


def _checked(method: Any, options: Mapping[str, Any]) -> _Estimator:
    if not isinstance(method, str) or method not in _METHODS:
        raise InputError(
            f"method={shown(method)}: expected one of {', '.join(get_args(Method))}.{nearest(str(method), _METHODS)}"
        )
    known = {*_METHODS[method].own, *(_MEASURED if method == "by_measure" else _READING)}
    for name in options:
        if name in known:
            continue
        others = [repr(other) for other, one in _METHODS.items() if name in one.own]
        if others or name in _READING:
            whose = f"{' and '.join(others)} takes it" if others else "it belongs to methods that read two poles"
            raise InputError(f"method={method!r} takes no {name}=: {whose}. See al.estimators().")
        raise InputError(f"{name}= is no argument of method={method!r}.{nearest(name, known)}")
    return _METHODS[method]


def _no_heads(method: str, site: str) -> str:
    able = ", ".join(repr(name) for name, one in _METHODS.items() if one.heads)
    return f"method={method!r} does not fit single heads, and {site} has heads: use one of {able}, or another site."


def _of_samples(
    samples: Any, method: str, own: Mapping[str, Any], reading: Mapping[str, Any], labels: Any, towards: Any,
    positive: Any, negative: Any,
) -> Directions:  # fmt: skip
    if not isinstance(samples, Samples):
        raise InputTypeError(f"samples={shown(samples)}: expected the samples of directions, d.samples.")
    if _METHODS[method].fit is None:
        raise InputError(f"method={method!r} needs lens=, because it generates clips.")
    if positive is not None or negative is not None or reading:
        name = next(iter(reading), "positive" if positive is not None else "negative")
        raise InputError(f"{name}= and samples= were both given: samples were already read. Leave {name}= out.")
    return _fitted(samples, method, own, labels, towards)


def _read(lens: AudioLens, positive: Any, negative: Any, method: str, reading: dict[str, Any]) -> Directions:
    if positive is None:
        raise InputError(f"method={method!r} needs the prompts of the positive pole.")
    if method == "mean_centred":
        neutral = reading.pop("neutral", None)
        if negative is not None or neutral is None:
            raise InputError(
                "method='mean_centred' takes one pole and neutral prompts: give neutral=sets.development, and no "
                "negative prompts."
            )
        negative = neutral
        if isinstance(reading.get("codes"), str) and reading["codes"] == "shared":
            reading["neutral"] = neutral
    elif negative is None:
        raise InputError(f"method={method!r} needs the prompts of the negative pole.")
    return difference_in_means(lens, positive, negative, **reading, keep_samples=True)


def _fitted(
    samples: Samples | None, method: str, own: Mapping[str, Any], labels: Any = None, towards: Any = None
) -> Directions:
    assert samples is not None
    chosen = _METHODS[method]
    assert chosen.fit is not None
    if samples.meta is not None and samples.meta.n_heads and not chosen.heads:
        raise InputError(_no_heads(method, samples.meta.site))
    target = Target.of(samples, labels, towards)
    if target.kind == "quantity" and not chosen.quantities:
        able = " and ".join(repr(name) for name, one in _METHODS.items() if one.quantities)
        raise InputError(
            f"method={method!r} separates two groups, and these labels are numbers: use {able}, or give "
            "towards= if the numbers are classes."
        )
    target.refuse_fewer(chosen.least, method)
    found = estimated(
        samples, target, partial(chosen.fit, **own), name=chosen.name, least=chosen.least, curve=chosen.curve
    )
    stated = {name: str(value) for name, value in own.items() if name not in found.meta.options}
    found = replace(found, meta=replace(found.meta, options={**found.meta.options, **stated}))
    if method != "leace":
        return found
    eraser = leace.fit(samples.values, target.positive, samples.layers, _shrinkage(own.get("shrinkage")))
    return replace(found, eraser=eraser)


def _of_measure(
    lens: AudioLens, own: dict[str, Any], reading: dict[str, Any], positive: Any, negative: Any
) -> Directions:
    prompts = own.pop("prompts", None)
    if positive is not None or negative is not None or prompts is None:
        raise InputError("method='by_measure' has no poles: give prompts=, such as prompts=sets.development.")
    sorting = by_measure.Sorting.checked(
        own.pop("measure", None), own.pop("fit", "quantile"), own.pop("quantile", 0.25)
    )
    samples = by_measure.read(lens, prompts, sorting, **own, **reading)
    ridge = sorting.fit == "ridge"
    found = _fitted(samples, "ridge" if ridge else "difference_in_means", {}, samples.measured if ridge else None)
    return replace(found, meta=replace(found.meta, estimator=_METHODS["by_measure"].name))
