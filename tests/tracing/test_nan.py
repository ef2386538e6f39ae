"""A model with NaN values neither samples nor scores: the error names the row and the step."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import audiolens as al
from analysis import attention, attribution, logit_lens, patching
from analysis.attribution import logits as direct
from analysis.patching import PatchingResult
from analysis.patching.engine import PairBatch
from analysis.placement.shifts import _Run
from audiolens.errors import ActivationOverflow, InputError
from audiolens.tracing.overflow import checked_logits

PROMPTS = ["fast piano", "slow dark guitar music", "calm"]
ALIKE = ["fast", "slow", "calm"]
SECONDS = 0.6


@pytest.fixture(params=["lens", "melody_lens"])
def broken(request: Any) -> Iterator[Any]:
    """A lens that reads no number for the word "calm"."""
    lens = request.getfixturevalue(request.param)
    yield from _with_nan(lens, lens.model.text_encoder.shared.weight, lens.tokenizer("calm")["input_ids"][0])


@pytest.fixture
def late(lens: Any) -> Iterator[Any]:
    """A lens with no number for the place of step 5."""
    yield from _with_nan(lens, lens.model.decoder.model.decoder.embed_positions.weights, 5)


@pytest.fixture
def one_weight(lens: Any) -> Iterator[Any]:
    """A lens with one weight that is no number, of the head of codebook 2."""
    yield from _with_nan(lens, lens.model.decoder.lm_heads[2].weight[9], 3)


def _with_nan(lens: Any, weights: torch.Tensor, place: int) -> Iterator[Any]:
    with torch.no_grad():
        before = weights[place].clone()
        weights[place] = torch.nan
        yield lens
        weights[place] = before


@pytest.mark.parametrize("seeds", [None, 0])
@pytest.mark.parametrize("sites", [(), "resid_post"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_generation_names_the_row(broken: Any, seeds: Any, sites: Any, guidance_scale: float) -> None:
    message = (
        r"row 2, step 0 \(0\.00 s\): infinite or NaN at hook_logits \(branch cond\)\. No intervention had written "
        "anything: the model's weights are at fault"
    )
    options = {"seeds": seeds, "sites": sites, "guidance_scale": guidance_scale}
    with pytest.raises(ActivationOverflow, match=message):
        broken.generate(ALIKE, SECONDS, **options)
    with pytest.raises(ActivationOverflow, match=message):
        broken.generate(ALIKE, SECONDS, batch_size=1, **options)
    assert len(broken.generate(ALIKE[:2], SECONDS, **options)) == 2


@pytest.mark.parametrize("seeds", [None, 0])
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("from_seconds", [None, 0.4])
def test_a_generation_names_the_step(late: Any, seeds: Any, temperature: float, from_seconds: Any) -> None:
    adds = () if from_seconds is None else al.Add(torch.ones(48), seconds=(from_seconds, SECONDS))
    with pytest.raises(ActivationOverflow, match=r"row 0, step 5 \(0\.20 s\).*No intervention had written anything"):
        late.generate(PROMPTS, SECONDS, seeds=seeds, temperature=temperature, interventions=adds)


def test_after_an_intervention_both_are_named(late: Any) -> None:
    with pytest.raises(ActivationOverflow, match="Interventions changed.*without interventions, the model's weights"):
        late.generate(PROMPTS, SECONDS, seeds=0, interventions=al.Add(torch.ones(48)))


@pytest.mark.parametrize("seeds", [None, 0])
def test_so_does_a_trace(late: Any, seeds: Any) -> None:
    with (
        pytest.raises(ActivationOverflow, match=r"row 0, step 5 .*Check what the trace writes"),
        late.trace(PROMPTS, fn="generate", seconds=SECONDS, seeds=seeds),
    ):
        pass


def test_one_weight_of_a_head_is_enough(one_weight: Any, codes: torch.Tensor) -> None:
    with pytest.raises(ActivationOverflow, match=r"row 0, step 0 .*hook_logits"):
        one_weight.generate(PROMPTS, SECONDS, seeds=0)
    with pytest.raises(ActivationOverflow, match=r"row 0, step 0 \(0\.00 s\), codebook 2"):
        logit_lens.read(one_weight, PROMPTS, codes[:3])


CLEAN, CORRUPTED = ["fast", "slow", "calm"], ["slow", "fast", "slow"]

READ: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "code_nats": lambda lens, codes: al.measure.code_nats(lens, ALIKE, codes, batch_size=2),
    "code_nats, unguided": lambda lens, codes: al.measure.code_nats(lens, ALIKE, codes, guidance_scale=1.0),
    "logit_lens.read": lambda lens, codes: logit_lens.read(lens, ALIKE, codes, batch_size=2),
    "logit_lens.listen": lambda lens, codes: logit_lens.listen(lens, ALIKE, codes, batch_size=2),
    "patch": lambda lens, codes: patching.patch(lens, CLEAN, CORRUPTED, codes, progress=False),
    "attribute": lambda lens, codes: attribution.attribute(lens, CLEAN, CORRUPTED, codes, check=0, progress=False),
    "direct": lambda lens, codes: direct.direct(lens, ALIKE, codes),
    "ablate": lambda lens, codes: attention.ablate(lens, ALIKE, codes),
    "to_text": lambda lens, codes: attention.to_text(lens, ALIKE, codes),
    "by_lag": lambda lens, codes: attention.by_lag(lens, ALIKE, codes, beat_seconds=[0.12, 0.16, 0.2]),
    "shifts": lambda lens, codes: _Run(lens, ALIKE, codes).logits(ALIKE),
}


@pytest.mark.parametrize("what", READ)
def test_what_is_computed_from_logits_or_patterns_names_the_row(broken: Any, what: str) -> None:
    codes = torch.randint(0, 32, (3, 4, 15), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ActivationOverflow, match="row 2"):
        READ[what](broken, codes)


def test_drift_is_never_nan(broken: Any, lens: Any) -> None:
    out = al.Generation(
        codes=torch.zeros(3, 4, 15, dtype=torch.long),
        audio=None,
        sample_rate=16000,
        frame_rate=25.0,
        prompts=tuple(ALIKE),
        seeds=(0, 1, 2),
        settings={"guidance_scale": 3.0, "temperature": 1.0, "top_k": 5, "audio_prompt_seconds": 0.0},
    )
    with pytest.raises(ActivationOverflow, match="row 2, step 0"):
        al.measure.drift(broken, out)
    with pytest.raises(ActivationOverflow, match="row 2, step 0"):
        al.measure.drift(broken, out, baseline=out)


def test_a_metric_that_gives_nan_is_refused(lens: Any, codes: torch.Tensor) -> None:
    def metric(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        scores = logits.mean((1, 2, 3))
        return torch.where(torch.arange(len(scores)) == 1, torch.nan, scores)

    with pytest.raises(InputError, match="returned NaN for row 1"):
        attribution.attribute(lens, CLEAN, CORRUPTED, codes[:3], metric=metric, check=0, progress=False)


def test_a_patch_that_makes_nan_is_no_missing_cell(lens: Any, codes: torch.Tensor, monkeypatch: Any) -> None:
    scored = PairBatch.scored

    def overflowing(self: Any, cells: Any) -> torch.Tensor:
        found = scored(self, cells)
        found[0, 1] = torch.nan
        return found

    monkeypatch.setattr(PairBatch, "scored", overflowing)
    with pytest.raises(ActivationOverflow, match="changed logits to NaN in pair 1"):
        patching.patch(lens, CLEAN, CORRUPTED, codes[:3], progress=False)


def test_logits_of_minus_infinity_are_numbers() -> None:
    logits = torch.zeros(2, 4, 3, 8)
    logits[0, 1, 2, 3] = -torch.inf
    assert checked_logits(logits, 25.0) is logits
    logits[1, 3, 2, 0] = torch.inf
    with pytest.raises(ActivationOverflow, match=r"row 7, step 2 \(0\.08 s\), codebook 3"):
        checked_logits(logits, 25.0, [5, 7])


@pytest.mark.parametrize("seeds", [None, 0])
@pytest.mark.parametrize("branches", [["cond"], ["null"], ["cond", "null"]])
def test_a_codebook_with_no_code_left_is_refused(lens: Any, seeds: Any, branches: list[Any]) -> None:
    def but(kept: slice) -> Callable[[torch.Tensor], torch.Tensor]:
        def forbid(logits: torch.Tensor) -> torch.Tensor:
            logits = logits.clone()
            logits[:, 2, :, kept] = -torch.inf
            return logits

        return forbid

    # One branch forbids them all, or each a half.
    halves = [slice(None)] if len(branches) == 1 else [slice(0, 16), slice(16, None)]
    edits = [
        al.Apply(but(kept), site="logits", branch=branch, rows=[1], seconds=(0.2, 0.4))
        for kept, branch in zip(halves, branches, strict=True)
    ]
    with pytest.raises(InputError, match=r"every code of codebook 2 is forbidden .* row 1, step 5 \(0\.20 s\)"):
        lens.generate(PROMPTS, SECONDS, seeds=seeds, interventions=edits)


def grid(clean: list[float], corrupted: list[float], patched: list[float]) -> PatchingResult:
    """One cell by ear, of some pairs."""
    return PatchingResult(
        patched=np.asarray(patched, dtype=float)[:, None, None, None],
        clean=np.asarray(clean, dtype=float)[:, None],
        corrupted=np.asarray(corrupted, dtype=float)[:, None],
        codebooks=("tempo",),
        layers=(0,),
        columns=("0.00-1.00",),
        spans=None,
        by="seconds",
        sites=("resid_post",),
        mode="denoising",
        metric="tempo",
        unit="BPM",
        scored=(0.0, 1.0),
        prompts=tuple((f"fast {i}", f"slow {i}") for i in range(len(clean))),
        clusters=tuple(map(str, range(len(clean)))),
    )


def test_a_share_is_of_the_same_pairs_above_and_below_and_the_pairs_are_counted() -> None:
    nan = float("nan")
    found = grid([120, 122, 124, nan, 121, 123], [60, 61, 62, 60, nan, 64], [90, 91, 93, 500, 90, nan])
    # Pairs 0 to 2 have all three: 30 of 60, 30 of 61, 31 of 62.
    assert found.normalised()[0, 0] == pytest.approx((30 + 30 + 31) / (60 + 61 + 62))
    told = repr(found)
    assert "over 4 of 6 pairs of 4 prompts" in told  # both runs measured
    assert found.means.n[0, 0, 0] == 4  # before and after the patch: 0 to 3
    fewer = grid([120, 122, 124, 123], [60, 61, 62, 63], [90, 91, 93, nan])
    assert "over 4 pairs of 4 prompts" in repr(fewer)
    assert "] over 3 pairs, p" in repr(fewer)
    assert "over 6 pairs of 6 prompts" in repr(grid([120] * 6, [60, 61, 62, 63, 64, 65], [90] * 6))
