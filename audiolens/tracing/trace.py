"""nnsight's trace, extended to rows, guidance branches and codebooks, for experiments beyond the lens's methods.

`lens.trace(prompts, codes=...)` opens a trace. `tracer.invoke(prompts, codes=...)` combines several invokes in one run,
each with its own rows. `lens.site(name).value` reads or assigns a site's value on these rows. `tracer.result` contains
the logits "row codebook step vocab" of a forward pass (under guidance, the rows of one branch follow those of the
other), or the codes of a generation. If the text is a prefix in the decoder's own sequence, all prompts of a run must
have the same length in tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from jaxtyping import Int
from nnsight.intervention.interleaver import Mediator, OutOfOrderError
from nnsight.intervention.tracer import InterleavingTracer
from torch import Tensor
from transformers import LogitsProcessorList

from audiolens.checks import one_or_listed, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, SiteError
from audiolens.interventions import Branch, checked_branch, checked_flags
from audiolens.model import text
from audiolens.model.config import LensConfig
from audiolens.model.families.family import Half
from audiolens.model.site_access import Put, View
from audiolens.model.sites import Site
from audiolens.model.text import Prompt
from audiolens.model.timeline import Real, clip_timeline, codes_timeline
from audiolens.model.traced_model import TracedModel
from audiolens.sound.codec import checked_codes
from audiolens.tracing import clock, model_calls
from audiolens.tracing.batching import Layout, RowBatcher, entire, read_columns
from audiolens.tracing.nnsight_source import envoy_of, open_ahead
from audiolens.tracing.overflow import Watch
from audiolens.tracing.recording import refuse_prefix
from audiolens.tracing.sampling import (
    SECONDS,
    Forbid,
    Sampling,
    checked_generation_config,
    checked_seeds,
    sampling_arguments,
)
from audiolens.tracing.traced_source import CurrentInvoker, CurrentTracer


class SiteOrderError(SiteError, OutOfOrderError):
    """A site was requested after the model had passed it. The class also inherits from nnsight's own error."""


@dataclass(frozen=True)
class Request:
    """The run that a trace performs: its guidance branches, the function that builds its inputs, and its guard.

    `generates` marks a generation, which consists of many forward passes. `inputs` returns the length of the prefix
    before step 0 and the arguments of the call.
    """

    halves: tuple[Half, ...]
    generates: bool
    inputs: Callable[[Sequence[Prompt], Sequence[Tensor | None]], tuple[int, dict[str, Any]]]
    guard: Callable[[], AbstractContextManager[None]]


class LensTracer(CurrentTracer, InterleavingTracer):
    """nnsight's tracer under the lens's guard, which allows one run at a time and restores the random state."""

    if TYPE_CHECKING:

        def __enter__(self) -> Any: ...

        def __exit__(self, exc_type: Any, exc_value: Any, exc_traceback: Any) -> Literal[False]: ...

    def invoke(self, *args: Any, **kwargs: Any) -> CurrentInvoker:
        return CurrentInvoker(self, *args, **kwargs)

    def execute(self, code: CodeType) -> None:
        with self.kwargs["request"].guard():
            super().execute(code)
            if isinstance(self.batcher, RowBatcher):
                self.batcher.copies.check()


@guarded
class SiteValue:
    """A site inside a trace. `value` reads or assigns the site's value on the rows of this invoke and on one branch.

    The value has the shape listed in `lens.sites()`; `branch="both"` adds a leading branch axis. With `prefix=True`,
    the steps of the first forward pass begin with the positions of the prefix. Read the sites in the model's order,
    each at most once per forward pass.

    If a value is the model's own tensor, writing into it changes the run, as long as no other value has been read
    since. Attention patterns, per-head results, position embeddings and, in a generation, sites on the text side are
    copies. If a copy was written into but not assigned, an error is raised, at the end of the run at the latest.

    To get gradients with respect to a value that is a copy or a part of the model's tensor (a head site, a branch under
    guidance, one of several invokes, steps after a prefix), assign a leaf tensor and differentiate with respect to that
    tensor.
    """

    def __init__(self, traced: TracedModel, site: Site, branch: Branch = "cond", prefix: bool = False) -> None:
        self._traced, self._site = traced, site
        self._branch, self._prefix = branch, prefix
        self._tap = traced.family.tap(site)

    @property
    def value(self) -> Tensor:
        whole, _, rows = self._opened()
        if skipped := self._skipped(whole):
            whole = whole[:, skipped:]
        if self._branch != "cond" or self._batcher.branches > 1 or rows != slice(None):
            # In all other cases, the model's own tensor is returned rather than a view, so that gradients can be taken.
            whole = whole.unflatten(0, (self._batcher.branches, -1))[:, rows][self._part]
        value = self._tap.form.turned(whole)
        if self._tap.recomputed:
            return self._batcher.copies.keep(*self._copy, value)
        # A generation reuses the text side at every step, so a write into it would be applied repeatedly.
        if self._tap.shared or (self._batcher.request.generates and not self._tap.form.timed):
            return self._batcher.copies.keep(*self._copy, value.clone())
        return value

    @value.setter
    def value(self, changed: Tensor) -> None:
        before, put, rows = self._opened()
        whole = before.unflatten(0, (self._batcher.branches, -1)).clone()
        chosen = torch.zeros(whole.shape[:2], dtype=torch.bool, device=whole.device)
        steps = whole[:, rows, self._skipped(before) :]
        expected = self._tap.form.turned(steps[self._part]).shape
        if changed.shape != expected:
            raise InputError(
                f"{self._site.name}: a value of shape {tuple(changed.shape)} was assigned, expected {tuple(expected)}."
            )
        steps[self._part] = self._tap.form.turned(changed).to(whole.dtype)
        chosen[:, rows][self._part] = True
        put(whole.flatten(0, 1), chosen.flatten())
        self._batcher.copies.assigned(*self._copy)

    def save(self) -> NoReturn:
        """Raise an error, because only the site's value can be saved, not the site itself.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self._site.name} is a site: save its value, nnsight.save(lens.site(...).value).")

    @property
    def _batcher(self) -> RowBatcher:
        return running(self._site.name)

    @property
    def _copy(self) -> tuple[int, str]:
        """The key of a copy, which consists of the invoke and the site with its branch."""
        branch = "" if self._branch == "cond" else f" of branch {self._branch!r}"
        return id(Mediator.current(self._site.name)), f"{self._site.name}{branch}"

    def _skipped(self, whole: Tensor) -> int:
        """The number of positions to skip: the length of the prefix in the first forward pass, and 0 in later ones."""
        prefix = 0 if self._prefix else self._batcher.prefix
        return prefix if whole.shape[1] > prefix else 0

    @property
    def _part(self) -> Any:
        """The index of the requested branch in values with a leading branch axis."""
        halves = self._batcher.halves
        if self._branch == "both":
            order = [halves.index(half) for half in ("cond", "null") if half in halves]
            return ... if order == sorted(order) else order
        if self._branch not in halves:
            raise InputError("branch='null' needs guidance: without it (guidance_scale=1) there is only 'cond'.")
        return halves.index(self._branch)

    def _opened(self) -> tuple[Tensor, Put, slice]:
        """Return the site's value, a function that replaces it, and the invoke's rows.

        Under guidance, the value contains the rows of one branch, followed by those of the other.
        The model's own tensors are returned whole, so that views of them can be written into. Recomputed values are
        computed for the invoke's rows only.
        """
        mediator, batcher = Mediator.current(self._site.name), self._batcher
        before = batcher.asked.get(id(mediator))
        try:
            found = self._served(mediator, batcher)
        except OutOfOrderError as error:
            if mediator.iteration:
                # nnsight ends an open-ended loop when it sees this error.
                raise
            raise SiteOrderError(self._passed(before)) from error
        batcher.asked[id(mediator)] = self._site
        return found

    def _passed(self, before: Site | None) -> str:
        """The error message for a site that the model had already passed; `before` is the site requested before it."""
        name = self._site.name
        if before == self._site:
            return (
                f"{name} was requested twice in one forward pass, which reaches it once: keep its value in a variable."
            )
        if before is None or self._traced.family.order([before, self._site])[0] == before:
            return f"{name} was requested, but the run ended without reaching it (again)."
        return (
            f"{name} was requested after {before.name}, but the model reaches it first: request sites in the model's "
            f"order, {name} first, then {before.name} (lens.sites() lists all)."
        )

    def _served(self, mediator: Any, batcher: RowBatcher) -> tuple[Tensor, Put, slice]:
        start, size = mediator.batch_group or (0, batcher.total)
        open_ahead(self._traced.nnsight, self._traced.family, self._site)
        envoy = envoy_of(self._traced.nnsight, self._traced.family, self._site)
        if self._tap.recomputed:
            return *self._tap.open(envoy, View(self._traced.config, size * batcher.branches)), slice(None)
        with entire(mediator):
            value, put = self._tap.open(envoy, View(self._traced.config, batcher.total * batcher.branches))

        def put_whole(other: Tensor, chosen: Tensor | None) -> None:
            with entire(mediator):
                put(other, chosen)

        return value, put_whole, slice(None) if size == batcher.total else slice(start, start + size)


def running(what: str) -> RowBatcher:
    """Inside a trace, return the batcher of the current run; `what` names the request in an error."""
    try:
        return Mediator.current(what).interleaver.batcher
    except ValueError as error:
        raise InputError(f"{what} can be read only inside a trace, in the block of its prompts ({error}).") from error


def position(traced: TracedModel) -> int:
    """Inside a trace, return the step at which the current forward pass starts: 0 if it starts with a prefix."""
    return max(0, clock.read(traced.nnsight.get(traced.family.decoder), running("position").prefix)[0])


def one_prefix(sizes: Sequence[int], config: LensConfig) -> int:
    """Return the prefix length of a run from its prompts' lengths in tokens; raise an error if the prefix lengths
    differ."""
    if len({config.prefix(size) for size in sizes}) > 1:
        raise InputError(
            f"prompts of {', '.join(map(str, sorted(set(sizes))))} tokens in one trace: {config.family} has no mask "
            "for its text, so all prompts of a trace must have the same length. Trace the others separately."
        )
    return config.prefix(sizes[0])


def joined(codes: Sequence[Tensor | None]) -> Tensor | None:
    """Return the codes of all invokes as one tensor, or `None` if no invoke has codes.

    Raises:
        InputTypeError, InputError: if only some invokes have codes, or if the codes do not have the same length.
    """
    given = [part for part in codes if part is not None]
    for part in given:
        if not isinstance(part, Tensor) or part.ndim != 3:
            raise InputTypeError(f"codes={shown(part)}: expected a tensor 'row codebook frame'.")
    if not given:
        return None
    if len(given) != len(codes) or len({part.shape[-1] for part in given}) > 1:
        raise InputError(
            "several invokes in one run: give codes to all of them, with the same number of frames, or to none."
        )
    return torch.cat(given)


def opened(
    traced: TracedModel,
    prompts: Prompt | Sequence[Prompt] = (),
    codes: Tensor | None = None,
    *,
    fn: Literal["forward", "generate"] = "forward",
    seeds: int | Sequence[int] | None = None,
    sampling: Sampling,
) -> LensTracer:
    """Open nnsight's tracer over a model's rows; see `AudioLens.trace`."""
    request, run = requested(traced, fn, seeds, sampling)
    # `if prompts` would be wrong: an absent prompt (None) and an empty string are rows; only the empty tuple means no
    # rows.
    given = () if isinstance(prompts, tuple) and not prompts else (prompts,)
    extra: dict[str, Any] = {} if codes is None else {"codes": codes}
    return traced.nnsight.trace(*given, fn=run, tracer_cls=LensTracer, request=request, **extra)


def site_value(
    traced: TracedModel, name: str, layer: int | None = None, branch: Branch = "cond", prefix: bool = False
) -> SiteValue:
    """Return a site inside a trace; see `AudioLens.site`."""
    found = traced.family.find(traced.config, name, layer)
    if len(found) != 1:
        raise InputError(f"{shown(name)} is a site of every block: give a layer, or the full name.")
    checked_branch(branch)
    checked_flags(prefix=prefix)
    if prefix:
        refuse_prefix(traced.config, "prefix=True")
    return SiteValue(traced, found[0], branch, prefix)


def requested(
    traced: TracedModel,
    fn: Literal["forward", "generate"],
    seeds: int | Sequence[int] | None,
    sampling: Sampling,
) -> tuple[Request, Callable[..., Tensor]]:
    """Return the request for the batcher and the function to run: one forward pass (logits) or a generation (codes)."""
    if fn not in ("forward", "generate"):
        raise InputError(f"fn={shown(fn)}: expected 'forward' or 'generate'.")
    seeds = one_or_listed("seeds", seeds)
    guided = sampling.guidance_scale > 1
    model, config = traced.model, traced.config
    timeline = clip_timeline(SECONDS if sampling.seconds is None else sampling.seconds, config)
    if fn == "generate":
        checked_generation_config(model, config)

    def inputs(prompts: Sequence[Prompt], parts: Sequence[Tensor | None]) -> tuple[int, dict[str, Any]]:
        codes = joined(parts)
        sizes = text.lengths(prompts, traced.tokenizer, text.token_limit(model, traced.tokenizer))
        prefix = one_prefix(sizes, config)
        drawn = None
        # Check everything before the text is encoded, so that nothing runs if a check fails.
        if fn == "generate":
            if codes is not None:
                raise InputError("fn='generate' makes its own codes: leave codes out, or use fn='forward'.")
            clip_timeline(timeline.seconds, config, prefix)
        elif codes is not None:
            codes = checked_codes(codes, config, len(prompts)).to(traced.device)
        drawn = checked_seeds(seeds, len(prompts))
        layout = Layout(tuple(range(len(prompts))), len(prompts), traced.family.halves(guided), len(prompts))
        codes_timeline(codes, config, prefix)
        encoded = text.encode(prompts, model, traced.tokenizer)
        arguments = traced.family.inputs(model, encoded, guided)
        if fn == "generate":
            draw = sampling_arguments(drawn, traced, sampling, timeline.steps)
            # A trace may write -inf to any logit.
            watch = Watch(layout, config.frame_rate, traced=True)
            processors = LogitsProcessorList([watch, Forbid(), *draw.pop("logits_processor", ())])
            return prefix, {"input_ids": encoded.ids, "logits_processor": processors, **arguments, **draw}
        columns = read_columns(codes, config, layout, traced.device)
        return prefix, {"decoder_input_ids": columns, **arguments}

    def forward(**ready: Any) -> Tensor:
        steps = ready["decoder_input_ids"].shape[-1]
        return model(use_cache=False, **ready).logits[:, -steps:].unflatten(0, (-1, config.n_codebooks))

    def generate(**ready: Any) -> Tensor:
        return model_calls.codes(model.generate, timeline, **ready)

    @contextmanager
    def guard() -> Iterator[None]:
        traced.nnsight.check_unchanged()
        with model_calls.alone(model), model_calls.random_state(keep=fn == "forward" or seeds is not None):
            yield

    generates = fn == "generate"
    return Request(traced.family.halves(guided), generates, inputs, guard), generate if generates else forward


@guarded
class TracedLens:
    """The methods of a lens that open a trace, and the methods that request values inside a trace."""

    @property
    def traced_model(self) -> TracedModel:
        raise NotImplementedError

    def trace(
        self,
        prompts: Prompt | Sequence[Prompt] = (),
        *,
        codes: Int[Tensor, "row codebook frame"] | None = None,
        guidance_scale: Real = 1.0,
        fn: Literal["forward", "generate"] = "forward",
        seconds: Real = SECONDS,
        seeds: int | Sequence[int] | None = None,
        temperature: Real = 1.0,
        top_k: int | None = 250,
    ) -> LensTracer:
        """Open an nnsight trace that handles rows and guidance branches; see `audiolens.tracing.trace`.

        If you give no prompts, put `with tracer.invoke(prompts, codes=...)` blocks inside the trace. `fn="generate"`
        takes `seconds`, `seeds`, `temperature` and `top_k` as `generate` does. Iterate over its forward passes with
        `tracer.iter[:]`. MusicGen runs step 0 twice, so get the step from `lens.position()`. The caller decides whether
        gradients are recorded.
        """
        sampling = Sampling(guidance_scale, temperature, top_k, seconds)
        return opened(self.traced_model, prompts, codes, fn=fn, seeds=seeds, sampling=sampling)

    def site(self, name: str, layer: int | None = None, *, branch: Branch = "cond", prefix: bool = False) -> SiteValue:
        """Return a site inside a trace, by full name or by short name and layer; read or assign its `value`."""
        return site_value(self.traced_model, name, layer, branch, prefix)

    def position(self) -> int:
        """Inside a trace, return the step at which the current forward pass starts."""
        return position(self.traced_model)
