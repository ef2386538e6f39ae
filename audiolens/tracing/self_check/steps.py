"""Check at load that an edit during generation with a cache changes exactly the steps, row and branch it names.

Every row has its own text states and codes. The codes are written into the logits step by step, and the clip consists
of these codes only if steps, rows, codebooks and delays match what the lens assumes. In the middle block, every
position is set to a distinct value, and one row of one branch is set to another value for two steps. The recording must
show both edits at the right positions. Activations recorded below this block are compared with those of one forward
pass over the same codes.

Written values are whole numbers, exact in every dtype, so that a model with zero or broken weights passes. Other values
are compared where they are finite, with a tolerance because kernels round differently for different shapes.
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
from audiolens.tracing.sampling import Sampling, sampling_arguments, settings_aside

ROWS, TOKENS = 2, 2
EDITED_ROW, FIRST, LAST = 1, 1, 3
"""The edit changes the conditional branch of EDITED_ROW, from step FIRST up to but not including LAST."""
CLOSE = 1e5
"""Recordings agree if the relative norm of their difference is at most CLOSE x eps of their dtype, and at most FAR."""
FAR = 0.25


def prove_time(traced: TracedModel) -> None:
    """Raise an error unless this model generates step by step, with steps as the lens counts them.

    Raises:
        UnsupportedModelError: if the steps do not match; the message names the mismatch and the version of
            transformers.
    """
    plan = _Plan.of(traced)
    with (
        model_calls.alone(traced.model),
        model_calls.random_state(keep=True),
        settings_aside(traced.model, traced.config),
    ):
        codes, played = plan.generated()
        if not torch.equal(codes, plan.codes):
            raise _unlike("its codes differ from those written as logits")
        read = plan.read()
    for name in played:
        # Rounding is identical before the first attention layer; after it, a few positions may differ.
        share = 0.5 if name == plan.above else 1.0
        if not _alike(played[name], read[name], share):
            raise _unlike(f"{name}, recorded during generation, differs from a forward pass over the same codes")
    if not torch.equal(played[plan.middle], plan.expected):
        raise _unlike(f"an edit of {plan.middle} from step {FIRST} to {LAST - 1} changed other positions")


@dataclass(frozen=True, eq=False)
class _Plan:
    """The inputs of both runs (text states and codes of every row) and the values written."""

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
        # transformers skips the delay in shorter clips, and the clip must have a step after the edit.
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
        """The recorded site that comes after attention, if the model has more than one block."""
        return self.middle.replace("post", "pre") if self.traced.config.n_layers > 1 else ""

    @property
    def expected(self) -> Float[Tensor, "branch row position d_model"]:
        """The output of the middle block after its edits."""
        expected = self.values.expand(2, -1, -1, -1).clone()
        first = self.timeline.prefix + FIRST
        expected[0, EDITED_ROW, first : first + LAST - FIRST] = self.written
        return expected

    @property
    def edits(self) -> tuple[Intervention, ...]:
        """The edits of the middle block."""
        rate = self.timeline.frame_rate
        return (
            Replace(self.values, site=self.middle, prefix=bool(self.timeline.prefix)),
            Replace(
                self.written, site=self.middle, rows=[EDITED_ROW], branch="cond", seconds=(FIRST / rate, LAST / rate)
            ),
        )

    def generated(self) -> tuple[Int[Tensor, "row codebook frame"], ActivationCache]:
        """Generate with all edits; return the codes and the recordings."""
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
            **sampling_arguments([0] * ROWS, self.traced, Sampling(3.0, 0.0, None), self.timeline.steps),
        )
        return made, self._cache(recorder)

    def read(self) -> ActivationCache:
        """Run one forward pass over the codes, up to the middle block, and return its recordings."""
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
    """Return whole numbers from -5 to 5 that differ between neighbours along every axis."""
    positions = torch.arange(math.prod(shape), dtype=torch.long, device=traced.device).reshape(shape)
    # If a size were a multiple of the period, 11, indices along the preceding axis could not be distinguished.
    rows = positions.flatten(1).div(math.prod(shape[1:]), rounding_mode="floor")
    steps = torch.arange(shape[1], dtype=torch.long, device=traced.device)[:, None]
    return ((positions + 3 * rows.reshape(shape) + 5 * steps) % 11 - 5).to(traced.dtype)


def _alike(
    found: Float[Tensor, "*position feature"], expected: Float[Tensor, "*position feature"], share: float
) -> bool:
    """Whether at least a fraction `share` of the positions agrees; positions that are not finite in either tensor count
    as agreeing."""
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
