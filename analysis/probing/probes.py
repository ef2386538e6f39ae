"""Cross-validate probes on arrays by group, with shuffled labels and intervals. This module does not need a model.

The scaler and PCA are fitted on the training side of a split only. Rows are weighted so that all classes count equally,
because otherwise a probe of a rare class would always predict the frequent one. Labels are shuffled within the folds,
group by group. Every shuffle therefore has the same folds, class counts and rows as the real labels, and its expected
score is chance. All layers, heads and baselines share folds and shuffles, so that their scores can be compared
pairwise. The best score of each shuffle over all layers and heads shows what a search among them can reach by chance
alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial, prod
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from analysis.probing.labels import Task, refuse_leak
from analysis.probing.table import column
from analysis.resampling import CONFIDENCE, Interval, bootstrap
from audiolens.checks import checked_count, shown
from audiolens.errors import InputError
from audiolens.ranking import auc

Kind = Literal["logistic", "ridge", "mlp"]
KINDS: tuple[Kind, ...] = ("logistic", "ridge", "mlp")
PENALTIES = np.logspace(0, 6, 13)
_BINS = 5
_MLP_COMPONENTS = 32

Labels = Int[np.ndarray, " row"] | Float[np.ndarray, " row"]


@dataclass(frozen=True)
class Probe:
    """Settings of a probe.

    Attributes:
        kind: "logistic" (for classes), "ridge" (for either task), or "mlp" (for either task, with one hidden layer of
            32 units).
        task: "classification" or "regression".
        n_classes: number of classes, for a classification.
        penalty: penalty on the squared norm of the weights of standardised features (1 / C in scikit-learn). The
            default is the number of features for "logistic" and 1 for "mlp". For "ridge" it is chosen on the training
            side by leave-one-out cross-validation.
        n_components: number of principal components to keep, fitted on the training side. `None` keeps all features,
            or 32 components for "mlp".
    """

    kind: Kind
    task: Task
    n_classes: int = 0
    penalty: float | None = None
    n_components: int | None = None

    def preprocessing(self, n_rows: int, n_features: int) -> Pipeline:
        """Return the scaler, and PCA if it was requested, for training data with this many rows and features."""
        components = self.n_components or (_MLP_COMPONENTS if self.kind == "mlp" else None)
        if components is None:
            return make_pipeline(StandardScaler())
        return make_pipeline(StandardScaler(), PCA(min(components, n_rows - 1, n_features), random_state=0))

    def outputs(
        self, train: Float[np.ndarray, "row feature"], targets: Sequence[Labels], tests: Sequence[np.ndarray], seed: int
    ) -> list[list[np.ndarray]]:
        """Return, for each target, the outputs "row class" (or "row 1" for a quantity) on each array of `tests`."""
        if self.kind == "ridge" and all(self._row_weights(target) is None for target in targets):
            return self._ridge(train, targets, tests)
        found = []
        for target in targets:
            fitted = self.fitted(train, target, seed)
            found.append([self._output(fitted, test) for test in tests])
        return found

    def fitted(self, train: np.ndarray, target: Labels, seed: int = 0) -> Any:
        """Return an estimator fitted to one target, with the same weight for every class."""
        weights = self._row_weights(target)
        if self.kind == "ridge":
            model = RidgeCV(PENALTIES if self.penalty is None else [self.penalty], alpha_per_target=True)
            return model.fit(train, self._coded(target), sample_weight=weights)
        if self.kind == "logistic":
            model = LogisticRegression(C=1 / (self.penalty or max(train.shape[1], 1)), max_iter=300)
        else:
            family = MLPClassifier if self.task == "classification" else MLPRegressor
            model = family(
                hidden_layer_sizes=(32,), solver="lbfgs", max_iter=200, random_state=seed,
                alpha=1.0 if self.penalty is None else self.penalty,
            )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(train, target, sample_weight=weights)

    def weights(self, values: Float[np.ndarray, "row feature"], target: Labels) -> Float[np.ndarray, "output feature"]:
        """Return the weights of a linear probe fitted to all rows, in the features' own units.

        The weights are "class feature", with a single row for a quantity.
        """
        steps = self.preprocessing(*values.shape).fit(values)
        coefficients = np.atleast_2d(self.fitted(steps.transform(values), target).coef_)
        if self.task == "classification" and len(coefficients) == 1:
            coefficients = np.concatenate([-coefficients, coefficients])
        if "pca" in steps.named_steps:
            coefficients = coefficients @ steps.named_steps["pca"].components_
        return coefficients / steps.named_steps["standardscaler"].scale_

    def _ridge(
        self, train: np.ndarray, targets: Sequence[Labels], tests: Sequence[np.ndarray]
    ) -> list[list[np.ndarray]]:
        """Fit all targets at once. If the rows have equal weights, the targets share one decomposition."""
        coded = [self._coded(target) for target in targets]
        model = RidgeCV(PENALTIES if self.penalty is None else [self.penalty], alpha_per_target=True)
        model.fit(train, np.concatenate(coded, axis=1))
        predicted = [model.predict(test).reshape(len(test), len(targets), -1) for test in tests]
        return [[outputs[:, number] for outputs in predicted] for number in range(len(targets))]

    def _row_weights(self, target: Labels) -> Float[np.ndarray, " row"] | None:
        """Return row weights, 1 on average, that make all classes count equally; `None` if every weight is 1."""
        if self.task == "regression":
            return None
        weights = compute_sample_weight("balanced", target)
        return None if np.ptp(weights) == 0 else weights

    def _coded(self, target: Labels) -> Float[np.ndarray, "row output"]:
        if self.task == "regression":
            return np.asarray(target, dtype=float)[:, None]
        return 2.0 * (np.asarray(target)[:, None] == np.arange(self.n_classes)) - 1

    def _output(self, model: Any, test: np.ndarray) -> Float[np.ndarray, "row output"]:
        if self.task == "regression" or self.kind == "ridge":
            return np.asarray(model.predict(test), dtype=float).reshape(len(test), -1)
        return model.predict_proba(test)


@dataclass(frozen=True, eq=False)
class Scored:
    """How well labels are predicted from the vectors of one layer, head or baseline.

    Attributes:
        score: out-of-fold balanced accuracy (mean recall of the classes), or R², where predicting the training mean
            gives 0.
        interval: interval of `score` over groups.
        auc: area under the ROC curve of each class against the rest, averaged over classes; NaN for a quantity.
        auc_interval: interval of `auc`.
        shuffled: score of each shuffle of the labels.
        memorised: mean score of the shuffles on their training rows, which shows how much the probe can memorise.
        outputs: out-of-fold outputs for the real labels, with one column per class, or a single column for a quantity.
    """

    score: float
    interval: Interval
    auc: float
    auc_interval: Interval
    shuffled: Float[np.ndarray, " shuffle"]
    memorised: float
    outputs: Float[np.ndarray, "row output"]

    @property
    def selectivity(self) -> float:
        """Score minus the mean score of shuffled labels."""
        return self.score - float(self.shuffled.mean())


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The folds and shuffles of one data set, which all layers, heads and baselines share.

    `targets` contains the real labels first, then the shuffled ones.
    """

    targets: tuple[Labels, ...]
    groups: Int[np.ndarray, " row"]
    folds: Int[np.ndarray, " row"]
    task: Task
    n_classes: int

    @classmethod
    def of(
        cls,
        target: Labels,
        groups: Int[np.ndarray, " row"],
        *,
        task: Task,
        names: Sequence[str] = (),
        n_folds: int = 5,
        folds: Sequence[int] | None = None,
        n_shuffles: int = 20,
        seed: int = 0,
    ) -> CrossValidation:
        """Split the rows into folds, shuffle the labels, and return both.

        Raises:
            InputError: if there are fewer than two distinct labels, if a label has too few rows or groups, or if given
                folds separate rows of one group.
        """
        n_folds = checked_count("n_folds", n_folds, 2)
        n_shuffles = checked_count("n_shuffles", n_shuffles, 0)
        _check_target(target, groups, task, names, n_folds if folds is None else 2)
        if n_shuffles < 1:
            raise InputError(f"n_shuffles={n_shuffles}: expected at least 1, to compare scores with; 20 is usual.")
        sides = _split(target, groups, task, n_folds, seed) if folds is None else _given(folds, groups)
        for fold in np.unique(sides):
            rest = target[sides != fold]
            if len(np.unique(rest)) < (len(names) if task == "classification" else 2):
                raise InputError(f"the training side of fold {fold} lacks a label: give fewer folds or more rows.")
        rng = np.random.default_rng(seed)
        shuffles = [shuffled(target, groups, sides, rng) for _ in range(n_shuffles)]
        return cls((target, *shuffles), groups, sides, task, len(names))

    def scored(
        self, values: Float[np.ndarray, "row feature"], probe: Probe, n_bootstrap: int = 500, seed: int = 0
    ) -> Scored:
        """Return the cross-validated scores of all targets. Each fold is predicted by a probe fitted to the others."""
        values = np.asarray(values, dtype=float)
        outputs = [np.empty((len(values), max(self.n_classes, 1))) for _ in self.targets]
        learned = []
        means = [np.empty(len(values)) for _ in self.targets]
        for fold in np.unique(self.folds):
            test, train = self.folds == fold, self.folds != fold
            steps = probe.preprocessing(int(train.sum()), values.shape[1]).fit(values[train])
            seen, unseen = steps.transform(values[train]), steps.transform(values[test])
            predicted = probe.outputs(seen, [target[train] for target in self.targets], (unseen, seen), seed)
            for number, (target, (held_out, fitted)) in enumerate(zip(self.targets, predicted, strict=True)):
                outputs[number][test] = held_out
                means[number][test] = target[train].mean() if self.task == "regression" else 0.0
                if number:
                    learned.append(self._score(target[train], fitted, np.full(train.sum(), target[train].mean())))
        real, mean = self.targets[0], means[0]
        strata = real if self.task == "classification" else None

        def score(index: np.ndarray) -> float:
            return self._score(real[index], outputs[0][index], mean[index])

        def area(index: np.ndarray) -> float:
            return macro_auc(real[index], outputs[0][index])

        everything = np.arange(len(real))
        classes = self.task == "classification"
        nothing = Interval(float("nan"), float("nan"), CONFIDENCE, len(np.unique(self.groups)))
        return Scored(
            score=score(everything),
            interval=bootstrap(score, self.groups, strata, n_bootstrap=n_bootstrap, seed=seed),
            auc=area(everything) if classes else float("nan"),
            auc_interval=bootstrap(area, self.groups, strata, n_bootstrap=n_bootstrap, seed=seed)
            if classes
            else nothing,
            shuffled=np.array(
                [self._score(*parts) for parts in zip(self.targets[1:], outputs[1:], means[1:], strict=True)]
            ),
            memorised=float(np.mean(learned)),
            outputs=outputs[0],
        )

    def _score(self, target: Labels, outputs: np.ndarray, means: np.ndarray) -> float:
        if self.task == "classification":
            return balanced_accuracy(target, outputs)
        residual, spread = ((target - outputs[:, 0]) ** 2).sum(), ((target - means) ** 2).sum()
        return float(1 - residual / spread) if spread else float("nan")


def target_of(labels: np.ndarray, classes: Sequence[str]) -> Labels:
    """Return labels as numbers: the index of the class in sorted order, or the quantity itself."""
    return np.unique(labels, return_inverse=True)[1] if classes else np.asarray(labels, dtype=float)


def balanced_accuracy(target: Labels, outputs: Float[np.ndarray, "row output"]) -> float:
    """Return the mean recall over classes. Chance is 1 / n_classes, regardless of the class sizes.

    If k classes share the largest output of a row, the row counts as 1 / k of a hit. The score of an uninformative
    probe is therefore exactly chance.
    """
    best = outputs == outputs.max(axis=1, keepdims=True)
    hits = best[np.arange(len(target)), np.asarray(target, dtype=int)] / best.sum(axis=1)
    counts = np.bincount(np.asarray(target, dtype=int), minlength=outputs.shape[1])
    sums = np.bincount(np.asarray(target, dtype=int), weights=hits, minlength=outputs.shape[1])
    return float((sums[counts > 0] / counts[counts > 0]).mean())


def macro_auc(target: Labels, outputs: Float[np.ndarray, "row output"]) -> float:
    """Return the area under the ROC curve of each class against the rest, averaged over classes. Ties count half."""
    areas = []
    for number in range(outputs.shape[1]):
        positive = np.asarray(target) == number
        if positive.any() and not positive.all():
            areas.append(float(auc(outputs[positive, number], outputs[~positive, number])))
    return float(np.mean(areas)) if areas else float("nan")


def shuffled(
    target: Labels, groups: Int[np.ndarray, " row"], folds: Int[np.ndarray, " row"], rng: np.random.Generator
) -> Labels:
    """Return labels shuffled between the groups of each fold, or between the fold's rows if groups mix labels."""
    result = np.array(target)
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        if not _constant(target, groups):
            result[rows] = target[rng.permutation(rows)]
            continue
        # Only groups of equal size exchange labels, so that the class counts of a fold do not change.
        numbers, first, sizes = np.unique(groups[rows], return_index=True, return_counts=True)
        for size in np.unique(sizes):
            mine = np.flatnonzero(sizes == size)
            moved = target[rows[first[mine]]][rng.permutation(len(mine))]
            for number, value in zip(numbers[mine], moved, strict=True):
                result[rows[groups[rows] == number]] = value
    return result


def least_p(target: Labels, groups: Int[np.ndarray, " row"], folds: Int[np.ndarray, " row"], n_shuffles: int) -> float:
    """Return the smallest possible p, given the number of shuffles and of distinct orders of the labels."""
    ways = 1
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        if not _constant(target, groups):
            ways *= _orders(target[rows])
            continue
        _, first, sizes = np.unique(groups[rows], return_index=True, return_counts=True)
        ways *= prod(_orders(target[rows[first[sizes == size]]]) for size in np.unique(sizes))
    return max(1 / ways, 1 / (n_shuffles + 1))


def _orders(labels: Labels) -> int:
    """Return the number of distinct orders of labels."""
    counts = np.unique(labels, return_counts=True)[1].tolist()
    return factorial(sum(counts)) // prod(map(factorial, counts))


def _constant(target: Labels, groups: Int[np.ndarray, " row"]) -> bool:
    """Return whether the rows of every group share one label."""
    return len(np.unique(groups)) == len({*zip(groups.tolist(), np.asarray(target).tolist(), strict=True)})


def _check_target(target: Labels, groups: np.ndarray, task: Task, names: Sequence[str], n_folds: int) -> None:
    if task == "regression":
        if len(np.unique(target)) < 2:
            raise InputError("all labels are equal: expected at least two different values.")
        if len(np.unique(groups)) < 2 * n_folds:
            raise InputError(
                f"{len(np.unique(groups))} groups for {n_folds} folds: give at least two per fold, or fewer folds."
            )
        return
    counts = {str(name): int((target == number).sum()) for number, name in enumerate(names)}
    if len(names) < 2 or min(counts.values()) < 2:
        raise InputError(f"labels {counts}: expected at least two labels with at least two rows each.")
    for number, name in enumerate(names):
        mine = len(np.unique(groups[target == number]))
        if mine < n_folds:
            raise InputError(
                f"label {shown(name)} has {mine} groups (prompts, clips or pieces), fewer than the {n_folds} folds: "
                f"give more groups, or folds={max(mine, 2)}."
            )


def _split(target: Labels, groups: np.ndarray, task: Task, n_folds: int, seed: int) -> Int[np.ndarray, " row"]:
    strata = target
    if task == "regression":
        strata = (rankdata(target, method="ordinal") - 1) * _BINS // len(target)
    sides = np.empty(len(target), dtype=int)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # scikit-learn warns about rows per class, but only the number of groups per class matters, and that was checked
        # above.
        warnings.simplefilter("ignore", UserWarning)
        for fold, (_, test) in enumerate(splitter.split(np.zeros(len(target)), strata, groups)):
            sides[test] = fold
    return sides


def _given(folds: Sequence[int], groups: np.ndarray) -> Int[np.ndarray, " row"]:
    numbers = np.unique(column("folds", folds, len(groups)), return_inverse=True)[1]
    if numbers.max() < 1:
        raise InputError("all rows are in one fold: expected at least two folds.")
    refuse_leak(numbers, [groups], "folds")
    return numbers
