"""Operations: the envoy that serves a site, and nnsight's view into a module's forward, opened for one run.

nnsight serves a single operation of a forward (`envoy.source`) from an instrumented copy, which it leaves in place
for good and which costs every later trace some microseconds an operation. A run opens what it needs and `close`
puts the module's own forward back.

It also hands over what every module of the model is given and returns, whoever asks: three calls for each of some two
hundred modules a step. `only` leaves that to the modules that a run reads.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from nnsight import NNsight
from nnsight.intervention.source import STATE, Controller, SourceNotAvailable, State
from torch import nn

from audiolens.errors import InputError, PromptError, UnsupportedModelError, shortened
from audiolens.model.families import Family
from audiolens.model.site_access import Tap
from audiolens.model.sites import Site
from audiolens.model.text import checked_prompts
from audiolens.tracing.batching import RowBatcher

_OPENED: WeakKeyDictionary[nn.Module, list[State]] = WeakKeyDictionary()
_CONTROLLED: WeakKeyDictionary[nn.Module, list[tuple[int, dict[str, Any], Controller]]] = WeakKeyDictionary()
"""Found once a model, which takes a millisecond; a part that is put in later is served as before."""


class Model(NNsight):
    """The model's envoy tree, counting rows as the lens does."""

    _batcher_class = RowBatcher

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._opened = dict(module.named_modules())

    def check_unchanged(self) -> None:
        """Look whether the modules are those that the lens was opened on: nnsight would not see others.

        Raises:
            InputError: naming those that are not.
        """
        now = dict(self._module.named_modules())
        changed = [name for name in {**self._opened, **now} if now.get(name) is not self._opened.get(name)]
        if changed:
            raise InputError(
                f"the model changed after the lens was opened: {shortened(changed, 4)}. Open a new lens on it, "
                "AudioLens(model, tokenizer), after adapters are added or merged and modules replaced."
            )

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        if inputs:
            if isinstance(inputs[0], Iterator):
                raise PromptError("the prompts of a trace are read twice: give a list, not a generator.")
            return len(checked_prompts(*inputs))
        # The lens's own passes bring transformers' arguments and no prompts: one worker over the whole batch.
        return 1 if "attention_mask" in kwargs else 0


def place_of(model: Model, family: Family, site: Site) -> Any:
    """The envoy that serves a site: of a module, or of one operation inside its forward."""
    tap = family.tap(site)
    envoy = _envoy(model, family, site, tap)
    return envoy if tap.op is None else _operation(model, envoy, tap.op)


def module_of(model: Model, family: Family, site: Site) -> nn.Module:
    """The module that a site's envoy stands for."""
    return _envoy(model, family, site, family.tap(site))._module


@contextmanager
def only(model: nn.Module, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Have nnsight see these modules alone, and the model itself: the others run their own forwards meanwhile.

    A module whose forward is not its class's (accelerate aligns devices by one) keeps nnsight's, which calls it.
    """
    if model not in _CONTROLLED:
        _CONTROLLED[model] = _controlled(model)
    kept = set(map(id, modules))
    muted = []
    try:
        for part, own, forward in _CONTROLLED[model]:
            if part not in kept and own.get("forward") is forward:
                del own["forward"]
                muted.append((own, forward))
        yield
    finally:
        for own, forward in muted:
            own["forward"] = forward


def _controlled(model: nn.Module) -> list[tuple[int, dict[str, Any], Controller]]:
    """Every part of a model whose own forward nnsight calls: its id, attributes, and nnsight's forward."""
    found = []
    for part in model.modules():
        own, forward = part.__dict__, part.__dict__.get("forward")
        plain = isinstance(forward, Controller) and forward.state.original is type(part).forward
        if plain and part is not model and "_hf_hook" not in own:
            found.append((id(part), own, forward))
    return found


def open_ahead(model: Model, family: Family, site: Site) -> None:
    """Open what later sites of the same module need: once its forward has begun, it is too late."""
    hooks = list(family.block_taps)
    if site.layer is None:
        return
    module = family.tap(site).module
    for hook in hooks[hooks.index(site.hook) + 1 :]:
        tap = family.block_taps[hook]
        if tap.op is not None and module.startswith(f"{tap.module}."):
            _operation(model, _envoy(model, family, site, tap), tap.op)


def close(model: nn.Module) -> None:
    """Put back the forward of every module that was opened."""
    for state in _OPENED.pop(model, ()):
        state.body, state.compiled, state.sourced = state.original, None, False


@contextmanager
def unharmed(model: nn.Module) -> Iterator[None]:
    """Take what nnsight puts on a model's modules off again if the block fails."""
    before = {part: part.__dict__.get("forward") for part in model.modules() if STATE not in part.__dict__}
    try:
        yield
    except BaseException:
        close(model)
        _CONTROLLED.pop(model, None)
        for part, forward in before.items():
            part.__dict__.pop(STATE, None)
            part.__dict__.pop("forward", None)
            if forward is not None:
                part.__dict__["forward"] = forward
        raise


def abandon(model: nn.Module) -> None:
    """Put a model back of which a run ended without a word: its forwards, and nnsight's readiness to serve."""
    close(model)
    for _, own, forward in _CONTROLLED.get(model, ()):
        own.setdefault("forward", forward)
    for state in _states(model):
        for reference, *_ in state.routes:
            if (interleaver := reference()) is not None:
                interleaver.interleaving, interleaver.mediators, interleaver.batcher = False, [], None
                interleaver.reindex()


def _states(model: nn.Module) -> list[State]:
    """What nnsight keeps on the modules of a model."""
    return [part.__dict__[STATE] for part in model.modules() if STATE in part.__dict__]


def _envoy(model: Model, family: Family, site: Site, tap: Tap) -> Any:
    root = model if site.layer is None else model.get(family.decoder).layers[site.layer]
    return root.get(tap.module) if tap.module else root


def _operation(model: NNsight, envoy: Any, op: str) -> Any:
    state = envoy._module.__dict__[STATE]
    try:
        if not state.sourced:
            _OPENED.setdefault(model._module, []).append(state)
        return getattr(envoy.source, op)
    except (AttributeError, SourceNotAvailable) as error:
        kind = type(envoy._module).__name__
        raise UnsupportedModelError(f"{kind} does not compute {op!r} where the lens expects it: {error}.") from None
