"""Connect sites to nnsight's envoys, and restrict nnsight's instrumentation to what one run needs.

nnsight exposes a single operation of a forward method (`envoy.source`) through an instrumented copy of the method.
nnsight never removes the copy, which then costs every later trace some microseconds per operation. A run therefore
opens only the operations it needs, and `close` restores the module's own forward method.

nnsight also intercepts the inputs and outputs of every module, whether or not they are read. This costs three calls per
step for each of about two hundred modules. `only` restricts the interception to the modules that a run reads.
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
"""The result of `_controlled`, computed once per model in about 1 ms. Modules added later stay intercepted."""


class Model(NNsight):
    """nnsight's envoy tree over the model, with rows counted as the lens counts them."""

    _batcher_class = RowBatcher

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._opened = dict(module.named_modules())

    def check_unchanged(self) -> None:
        """Check that the model's modules are those it had when the lens was opened, because nnsight knows only those.

        Raises:
            InputError: if modules were added, removed or replaced; the message names them.
        """
        now = dict(self._module.named_modules())
        changed = [name for name in {**self._opened, **now} if now.get(name) is not self._opened.get(name)]
        if changed:
            raise InputError(
                f"the model changed after the lens was opened: {shortened(changed, 4)}. After adding or merging "
                "adapters or replacing modules, open a new lens on it, AudioLens(model, tokenizer)."
            )

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        if inputs:
            if isinstance(inputs[0], Iterator):
                raise PromptError("the prompts of a trace are read twice: give a list, not a generator.")
            return len(checked_prompts(*inputs))
        # The lens's own runs pass transformers' arguments and no prompts, as one invoke over the whole batch.
        return 1 if "attention_mask" in kwargs else 0


def envoy_of(model: Model, family: Family, site: Site) -> Any:
    """Return the envoy for a site, which belongs to a module or to one operation inside its forward method."""
    tap = family.tap(site)
    envoy = _envoy(model, family, site, tap)
    return envoy if tap.op is None else _operation(model, envoy, tap.op)


def module_of(model: Model, family: Family, site: Site) -> nn.Module:
    """Return the module behind a site's envoy."""
    return _envoy(model, family, site, family.tap(site))._module


@contextmanager
def only(model: nn.Module, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context, nnsight intercepts only these modules and the model itself; others run uninstrumented.

    If a module's forward method was replaced (as accelerate does to align devices), nnsight's wrapper stays in place,
    because the wrapper calls the replacement.
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
    """Return the id, attributes and wrapper of every module for which nnsight wraps the forward method of its class."""
    found = []
    for part in model.modules():
        own, forward = part.__dict__, part.__dict__.get("forward")
        plain = isinstance(forward, Controller) and forward.state.original is type(part).forward
        if plain and part is not model and "_hf_hook" not in own:
            found.append((id(part), own, forward))
    return found


def has_own_forward(module: nn.Module) -> bool:
    """Whether calling a module runs the forward method of its class, apart from nnsight's wrapper around it."""
    forward = module.__dict__.get("forward")
    return forward is None or (isinstance(forward, Controller) and forward.state.original is type(module).forward)


def open_ahead(model: Model, family: Family, site: Site) -> None:
    """Open the operations that later sites of the same module need.

    These operations cannot be opened once the module's forward pass has begun.
    """
    hooks = list(family.block_taps)
    if site.layer is None:
        return
    module = family.tap(site).module
    for hook in hooks[hooks.index(site.hook) + 1 :]:
        tap = family.block_taps[hook]
        if tap.op is not None and module.startswith(f"{tap.module}."):
            _operation(model, _envoy(model, family, site, tap), tap.op)


def close(model: nn.Module) -> None:
    """Restore the forward method of every module in which an operation was opened."""
    for state in _OPENED.pop(model, ()):
        state.body, state.compiled, state.sourced = state.original, None, False


@contextmanager
def unharmed(model: nn.Module) -> Iterator[None]:
    """If the code in this context fails, remove what nnsight attached to the model's modules."""
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
    """Restore a model whose run ended without cleaning up: its forward methods, and nnsight's interleaving state."""
    close(model)
    for _, own, forward in _CONTROLLED.get(model, ()):
        own.setdefault("forward", forward)
    for state in _states(model):
        for reference, *_ in state.routes:
            if (interleaver := reference()) is not None:
                interleaver.interleaving, interleaver.mediators, interleaver.batcher = False, [], None
                interleaver.reindex()


def _states(model: nn.Module) -> list[State]:
    """Return nnsight's state objects on the modules of a model."""
    return [part.__dict__[STATE] for part in model.modules() if STATE in part.__dict__]


def _envoy(model: Model, family: Family, site: Site, tap: Tap) -> Any:
    root = model if site.layer is None else model.get(f"{family.decoder}.{family.body_blocks}.{site.layer}")
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
