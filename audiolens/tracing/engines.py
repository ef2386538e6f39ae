"""Choose the engine that generates clips: transformers under nnsight ("exact"), or the plain decoder ("fast").

The exact engine is bit-identical to transformers. The fast one computes the same function in less time, but rounds
differently in the last bits. Before it is used, its logits are compared with those of the exact engine, once per model.
With "auto", the first batch of a call is generated with both, and the fast engine goes on only if all codes are equal.
"""

from collections.abc import Callable
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from audiolens.checks import shown
from audiolens.errors import InputError
from audiolens.model.traced_model import TracedModel
from audiolens.tracing import fast_clips

Engine = Literal["exact", "fast", "auto"]

_REFUSED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Why the fast engine is not used for a model that was compared; empty if it is."""
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.25
"""The largest accepted difference between logits, in standard deviations of the logits. Half precision rounds to about
1 in 256, and a decoder that computes something else differs by more than a standard deviation."""


def checked_engine(engine: object) -> Engine:
    """Return the name of an engine.

    Raises:
        InputError: if there is no such engine.
    """
    for name in get_args(Engine):
        if engine == name:
            return name
    raise InputError(f"engine={shown(engine)}: expected 'exact', 'fast' or 'auto'.")


class Choice:
    """The engine of one call of `generate`. `name` is the one in use, and `compares` whether the next batch decides."""

    def __init__(self, traced: TracedModel, engine: Engine, unfit: str | None, logits: Callable[[str], Tensor]) -> None:
        """`unfit` states which argument the fast engine does not support. `logits` generates a very short clip with the
        named engine, and returns its logits."""
        self.name: Literal["exact", "fast"] = "exact"
        self.compares = False
        if engine == "exact":
            return
        why = unfit or fast_clips.refusal(traced) or _compared(traced, logits)
        if why and engine == "fast":
            raise InputError(f"engine='fast': {why}. Leave engine out, or use engine='auto'.")
        if not why:
            self.name, self.compares = "fast", engine == "auto"

    def decided(self, exact: Tensor, fast: Tensor) -> None:
        """Decide by the codes of the first batch from both engines."""
        self.compares = False
        if not torch.equal(exact, fast):
            self.name = "exact"


def _compared(traced: TracedModel, logits: Callable[[str], Tensor]) -> str:
    """Return why the fast engine does not compute this model's logits, or an empty string if it does."""
    if traced.model in _REFUSED:
        return _REFUSED[traced.model]
    exact = logits("exact")
    # The fast run below is a call of `generate` itself, and would otherwise be compared first.
    _REFUSED[traced.model] = ""
    try:
        apart = (exact.double() - logits("fast").double()).abs().max() / exact.double().std().clamp_min(1e-12)
    except BaseException:
        del _REFUSED[traced.model]
        raise
    if not apart <= _TOLERANCE.get(traced.dtype, _HALF_TOLERANCE):
        _REFUSED[traced.model] = f"its logits differ from the model's own by {float(apart):.2g} standard deviations"
    return _REFUSED[traced.model]
