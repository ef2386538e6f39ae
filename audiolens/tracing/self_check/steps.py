"""The proof at load, of time: a tiny cached generation in which an edit moves the steps that it names and no other.

Every row is given text states and codes of its own. The codes are written as logits, step by step, and come back as the
clip only if steps, rows, codebooks and delays are what the lens takes them for. In the middle block every position is
given a value of its own, and then one row of one branch another for two steps: both must be found where they belong.
What is recorded below is compared with one forward over the same codes.

What is written are whole numbers, exact in every dtype, so that a model of zero or broken weights passes. What is not
written is compared where it is finite, with room for what kernels of different shape round differently.
"""

import math
from dataclasses import dataclass
from importlib.metadata import version

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from audiolens.cache.activation_cache import ActivationCache
from audiolens.errors import UnsupportedModelError
from audiolens.interventions import Intervention, Replace
from audiolens.model.text import Text
from audiolens.model.timeline import Timeline, delay
from audiolens.model.traced_model import TracedModel
from audiolens.tracing import model_calls
from audiolens.tracing.batching import Layout, read_columns
from audiolens.tracing.plan import Run
from audiolens.tracing.recording import Reading, Recorder
from audiolens.tracing.sampling import sampling_arguments, settings_aside

ROWS, TOKENS = 2, 2
EDITED_ROW, FIRST, LAST = 1, 1, 3
"""The edit touches the conditional half of this row, from step FIRST to before LAST."""
CLOSE = 1e5
"""Recordings agree within so many roundings of their dtype, or within FAR of their length."""
FAR = 0.25


def prove_time(traced: TracedModel) -> None:
    """Raise unless a generation of this model goes step by step as the lens counts them.

    Raises:
        UnsupportedModelError: naming what did not match, and the version of transformers.
    """
    plan = _Plan.of(traced)
    with (
        model_calls.alone(traced.model),
        model_calls.random_state(keep=True),
        settings_aside(traced.model, traced.config),
    ):
        codes, played = plan.generated()
        if not torch.equal(codes, plan.codes):
            raise _unlike("its codes are not those whose logits were written")
        read = plan.read()
    for name in played:
        # Below all attention nothing rounds differently; above, a few places may.
        share = 0.5 if name == plan.above else 1.0
        if not _alike(played[name], read[name], share):
            raise _unlike(f"{name}, recorded meanwhile, is not what a forward over the same codes holds")
    if not torch.equal(played[plan.middle], plan.expected):
        raise _unlike(f"an edit of {plan.middle} from step {FIRST} to {LAST - 1} changed other places than those")


@dataclass(frozen=True, eq=False)
class _Plan:
    """Both runs: text states and codes of every row, and what is written."""

    traced: TracedModel
    text: Text
    timeline: Timeline
    layout: Layout
    codes: Int[Tensor, "row codebook frame"]
    values: Float[Tensor, "row position d_model"]
    written: Float[Tensor, " d_model"]
    sites: tuple[str, ...]
    middle: str

    @classmethod
    def of(cls, traced: TracedModel) -> "_Plan":
        config, width = traced.config, traced.model.config.text_encoder.d_model
        # transformers leaves the delay out of shorter clips; the edit needs a step after it.
        timeline = Timeline(
            max(LAST + 1, *config.delays), config.frame_rate, config.delays, prefix=config.prefix(TOKENS)
        )
        middle = config.n_layers // 2
        read = [f"blocks.{layer}.hook_resid_pre" for layer in sorted({0, middle})]
        text = [name for name in ("hook_text_states",) if traced.family.has(name)]
        ids = torch.zeros(ROWS, TOKENS, dtype=torch.long, device=traced.device)
        return cls(
            traced,
            Text(ids, torch.ones_like(ids), _numbers(traced, ROWS, TOKENS, width)),
            timeline,
            Layout((0, 1), ROWS, traced.family.guided, ROWS, timeline.prefix),
            _numbers(traced, ROWS, config.n_codebooks, timeline.frames).long().add(5) % config.vocab_size,
            _numbers(traced, ROWS, timeline.prefix + timeline.steps, config.d_model),
            torch.full((config.d_model,), 7.0, dtype=traced.dtype, device=traced.device),
            tuple([*text, *read, f"blocks.{middle}.hook_resid_post"]),
            f"blocks.{middle}.hook_resid_post",
        )

    @property
    def above(self) -> str:
        """What stands above attention, if the model has more than one block."""
        return self.middle.replace("post", "pre") if self.traced.config.n_layers > 1 else ""

    @property
    def expected(self) -> Float[Tensor, "branch row position d_model"]:
        """What the middle block holds after its edits."""
        expected = self.values.expand(2, -1, -1, -1).clone()
        first = self.timeline.prefix + FIRST
        expected[0, EDITED_ROW, first : first + LAST - FIRST] = self.written
        return expected

    @property
    def edits(self) -> tuple[Intervention, ...]:
        """Those of the middle block."""
        rate = self.timeline.frame_rate
        return (
            Replace(self.values, site=self.middle, prefix=bool(self.timeline.prefix)),
            Replace(
                self.written, site=self.middle, rows=[EDITED_ROW], branch="cond", seconds=(FIRST / rate, LAST / rate)
            ),
        )

    def generated(self) -> tuple[Int[Tensor, "row codebook frame"], ActivationCache]:
        """The codes of a generation with all edits, and what was recorded of it."""
        config = self.traced.config
        columns = delay(self.codes, config.delays, 0)[..., 1:]
        logits = Replace(functional.one_hot(columns, config.vocab_size).float(), site="hook_logits")
        run, recorder = self._run((*self.edits, logits))
        made = model_calls.generate(
            self.traced.nnsight,
            run,
            self.timeline,
            use_cache=True,
            input_ids=self.text.ids,
            **self.traced.family.inputs(self.traced.model, self.text, True),
            **sampling_arguments([0] * ROWS, self.traced, 3.0, 0.0, None),
        )
        return made, self._cache(recorder)

    def read(self) -> ActivationCache:
        """What one forward over the codes holds, up to the middle block."""
        run, recorder = self._run(self.edits, stop=self.traced.config.n_layers // 2 + 1)
        columns = read_columns(self.codes, self.traced.config, self.layout, self.traced.device)
        inputs = self.traced.family.inputs(self.traced.model, self.text, True)
        model_calls.forward(self.traced.nnsight, run, decoder_input_ids=columns, **inputs)
        return self._cache(recorder)

    def _run(self, edits: tuple[Intervention, ...], stop: int | None = None) -> tuple[Run, Recorder]:
        traced = self.traced
        reading = Reading(self.sites, branch="both", prefix=bool(self.timeline.prefix))
        recorder = Recorder.of(reading, traced, ROWS, self.timeline)
        assert recorder is not None
        recorder.begin(self.layout)
        run = Run(
            traced,
            layout=self.layout,
            timeline=self.timeline,
            interventions=edits,
            recorder=recorder,
            stop=stop,
        )
        return run, recorder

    def _cache(self, recorder: Recorder) -> ActivationCache:
        return recorder.cache((None,) * ROWS, self.traced.name, self.traced.config.frame_rate)


def _numbers(traced: TracedModel, *shape: int) -> Tensor:
    """Whole numbers from -5 to 5, others at neighbouring places along every axis."""
    places = torch.arange(math.prod(shape), dtype=torch.long, device=traced.device).reshape(shape)
    # Where a size is a multiple of the period, the index along the axis before would be lost.
    rows = places.flatten(1).div(math.prod(shape[1:]), rounding_mode="floor")
    steps = torch.arange(shape[1], dtype=torch.long, device=traced.device)[:, None]
    return ((places + 3 * rows.reshape(shape) + 5 * steps) % 11 - 5).to(traced.dtype)


def _alike(found: Float[Tensor, "*place feature"], expected: Float[Tensor, "*place feature"], share: float) -> bool:
    """Whether this share of the places agrees; those that are not finite in either do."""
    room = min(FAR, CLOSE * torch.finfo(found.dtype).eps)
    found, expected = found.double(), expected.double()
    sound = found.isfinite().all(-1) & expected.isfinite().all(-1)
    agree = (found - expected).norm(dim=-1) <= room * expected.norm(dim=-1)
    return bool((agree | ~sound).double().mean() >= share)


def _unlike(found: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"under transformers {version('transformers')} this model does not generate as the lens counts its steps: "
        f"{found}. Install a release that audiolens supports (docs/versions.md)."
    )
