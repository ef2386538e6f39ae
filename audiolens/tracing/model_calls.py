"""Execute a `Run`: generate, or run one forward pass over given codes. A model has only one active run at a time.

The global random state is restored after an exception and, on request, after a normal run, because transformers draws
from Python's `random` in every block, and nnsight and the samplers draw from torch's generator.

If a process forks while another thread runs a model, the child process does not have that thread, so it treats the run
as finished.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor, nn
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from audiolens.errors import BusyError, InputError, UnsupportedModelError
from audiolens.model.timeline import Timeline, undelay
from audiolens.tracing.nnsight_source import Model, abandon, close, only
from audiolens.tracing.overflow import Watch
from audiolens.tracing.plan import REOPEN, Run
from audiolens.tracing.sampling import Forbid


@dataclass
class _Guard:
    """Whether a model is running, and in which thread. Other threads wait for the lock."""

    lock: Any = field(default_factory=threading.RLock)
    running: bool = False
    thread: int | None = None


# The key is the model, not the lens, because lenses on one model share its modules, and nnsight supports one run at a
# time.
_GUARDS: WeakKeyDictionary[nn.Module, _Guard] = WeakKeyDictionary()


class _Done(Exception):  # noqa: N818 - not an error: generation is complete
    """Ends a generation before the codec runs; otherwise transformers would decode the codes and we would discard the
    audio."""


class _KeepColumns(StoppingCriteria):
    """Stores the generated columns, and ends the generation once there are enough columns."""

    def __init__(self, columns: int) -> None:
        self.wanted = columns
        self.columns: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002 - transformers' signature
        self.columns = input_ids
        if input_ids.shape[-1] >= self.wanted:
            raise _Done
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def codes(generate: Callable[..., Any], timeline: Timeline, **inputs: Any) -> Int[Tensor, "row codebook frame"]:
    """Call transformers' `generate` (bare or traced) and return the undelayed codes.

    `decoder_input_ids`, if given, are the start token and the frames to continue.
    """
    keeper = _KeepColumns(timeline.steps + 1)
    start = inputs.get("decoder_input_ids")
    given = 0 if start is None else start.shape[-1] - 1
    with suppress(_Done), device_of(inputs["attention_mask"].device):
        generate(max_new_tokens=timeline.steps - given, stopping_criteria=StoppingCriteriaList([keeper]), **inputs)
    columns = keeper.columns
    found = 0 if columns is None else columns.shape[-1]
    if columns is None or found != keeper.wanted:
        raise UnsupportedModelError(
            f"transformers' generate returned {found} columns of codes, expected {keeper.wanted}."
        )
    made = undelay(columns.unflatten(0, (-1, len(timeline.delays))), timeline.delays, timeline.frames)
    if start is not None:
        # While delayed codebooks still read given frames, transformers samples codes but then feeds the given codes
        # instead.
        made[..., :given] = start.unflatten(0, (-1, len(timeline.delays)))[..., 1:]
    return made


def device_of(own: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which tensors are created on the model's device by default, not on torch's default one."""
    default = torch.get_default_device()
    return nullcontext() if default.type == "cpu" or default == own else own


def generate(model: Model, run: Run, timeline: Timeline, **inputs: Any) -> Int[Tensor, "row codebook frame"]:
    """Generate one batch with transformers' `generate` under the run's plan, and return its codes."""
    model.check_unchanged()

    def traced(**ready: Any) -> None:
        with model.trace(fn="generate", **ready) as tracer:
            run.generation(tracer, timeline.steps)

    watch = run.watch or Watch(run.layout, timeline.frame_rate, origin=run.origin)
    # The overflow watch comes first, so that it sees the model's own scores.
    forbid = [Forbid()] if run.forbids else []
    inputs["logits_processor"] = LogitsProcessorList([watch, *forbid, *inputs.get("logits_processor", ())])
    bare: Any = model._module
    with only(bare, run.modules):
        # If there is nothing to edit or record, calling the bare model is fastest.
        made = codes(bare.generate if run.idle else traced, timeline, **inputs)
    run.finished(timeline.steps)
    return made


def forward(model: Model, run: Run, **inputs: Any) -> Float[Tensor, "sequence step feature"]:
    """Run one decoder forward pass; return logits in transformers' layout, or the residual stream where the run stops.

    Positions before step 0 (a prefix) are dropped from the result.
    """
    model.check_unchanged()
    kept: list[Tensor] = []
    with torch.no_grad(), only(model._module, run.modules):
        if run.idle:
            kept.append(model._module(use_cache=False, **inputs).logits)
        else:
            with _served(), model.trace(use_cache=False, **inputs) as tracer:
                run.single(tracer, kept)
    if run.watch is not None and run.gate is not None:
        run.watch.ended(run.end, kept[0], -run.layout.prefix)
    elif run.watch is not None:
        run.watch.look(kept[0], -run.layout.prefix)
    return kept[0][:, run.layout.prefix :]


@contextmanager
def _served() -> Iterator[None]:
    try:
        yield
    except OutOfOrderError as error:
        raise UnsupportedModelError(
            f"the model ran without reaching every site that was requested ({str(error).splitlines()[0]}). {REOPEN}"
        ) from error


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Allow only one run of a model at a time. Other threads wait, and a nested run raises an error.

    Raises:
        BusyError: if another run of this model is active in this thread.
        InputError: if the model is in training mode.
    """
    guard = _GUARDS.setdefault(model, _Guard())
    with guard.lock:
        if guard.running:
            raise BusyError("this model is already running: a run cannot be started inside another one.")
        if model.training:
            raise InputError("the model is in training mode (dropout would change every run): call model.eval().")
        guard.running, guard.thread = True, threading.get_ident()
        try:
            yield
        finally:
            close(model)
            guard.running, guard.thread = False, None


def _forked() -> None:
    """In a forked process, end the runs of the parent's threads, whose locks would otherwise be held forever.

    The child also lacks torch's worker threads and would wait for them, so it computes on one thread.
    """
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
    for model, guard in _GUARDS.items():
        if guard.thread == threading.get_ident():
            continue
        guard.lock = threading.RLock()
        if guard.running:
            guard.running, guard.thread = False, None
            abandon(model)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@contextmanager
def random_state(keep: bool) -> Iterator[None]:
    """Restore torch's and Python's random state after an exception, and with `keep` also after a normal exit."""
    python, cpu = random.getstate(), torch.get_rng_state()
    gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None

    def restore() -> None:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state_all(gpu)

    try:
        yield
    except BaseException:
        restore()
        raise
    if keep:
        restore()
