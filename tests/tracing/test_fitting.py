"""A batch that does not fit in memory is divided in half, and its clips are those of a smaller batch size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import audiolens as al
from audiolens.errors import AudioLensWarning, InputError, TooLittleMemoryError
from audiolens.tracing import fast_clips, given_sound, model_calls

PROMPTS = ["a calm song", "fast piano", "slow guitar", "loud drums", "jazz"]
CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"
)
Short = Callable[..., list[int]]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Short:
    """Let the device run out of memory for more than `most` rows, after it has computed them."""

    def limit(most: int, error: Any = torch.OutOfMemoryError) -> list[int]:
        tried: list[int] = []

        def limited(module: Any, name: str, rows_of: Callable[..., int]) -> None:
            own = getattr(module, name)

            def call(*given: Any, **named: Any) -> Any:
                tried.append(rows_of(*given))
                made = own(*given, **named)
                if tried[-1] > most:
                    raise error(CPU)
                return made

            monkeypatch.setattr(module, name, call)

        for module in (fast_clips, model_calls):
            limited(module, "generate", lambda _, run, *rest: len(run.layout.rows))
        limited(model_calls, "forward", lambda _, run, *rest: len(run.layout.rows))
        limited(given_sound, "decode", lambda codes, *rest: len(codes))
        return tried

    return limit


@pytest.mark.parametrize(("engine", "error"), [("exact", RuntimeError), ("fast", torch.OutOfMemoryError)])
def test_clips_and_recordings_of_a_divided_batch_are_those_of_a_smaller_one(
    lens: Any, vector: torch.Tensor, short: Short, engine: Any, error: Any
) -> None:
    steps = [al.Add(vector, layers=[1], strength=[0.0, 1.0, -1.0, 2.0, 0.5])]
    asked: dict[str, Any] = {"seconds": 0.4, "seeds": [3, 1, 4, 1, 5], "interventions": steps, "engine": engine,
                             "sites": "resid_post", "reduce": "mean"}  # fmt: skip
    expected = lens.generate(PROMPTS, batch_size=2, **asked)
    tried = short(2, error)
    with pytest.warns(AudioLensWarning, match=r"5 clips of 0\.4 s do not fit .* of cpu, so at most 3 run at once"):
        found = lens.generate(PROMPTS, **asked)
    assert tried[:6] == [5, 3, 2, 2, 1, 5]
    assert torch.equal(found.codes, expected.codes)
    torch.testing.assert_close(found.audio, expected.audio, atol=1e-5, rtol=0)
    # The failed attempts ran to their end, so their recordings would be added twice if they were not dropped.
    assert torch.equal(found.cache.stack("resid_post"), expected.cache.stack("resid_post"))
    assert torch.equal(found.cache.stack_norms("resid_post"), expected.cache.stack_norms("resid_post"))
    assert found.settings["at_once"] == 2
    assert "at_once" not in expected.settings


def test_reading_codes_is_divided_as_well(lens: Any, codes: torch.Tensor, short: Short) -> None:
    asked: dict[str, Any] = {"sites": ["resid_post"], "guidance_scale": 3.0, "branch": "both"}
    logits, cache = lens.run_with_cache(PROMPTS, codes, batch_size=3, **asked)
    parts = list(lens.iter_cache(PROMPTS, codes, batch_size=2, progress=False, **asked))
    short(3)
    with pytest.warns(AudioLensWarning, match="5 rows of 0.6 s of codes"):
        again, found = lens.run_with_cache(PROMPTS, codes, **asked)
    assert torch.equal(again, logits)
    assert torch.equal(found.stack("resid_post"), cache.stack("resid_post"))
    short(1)
    with pytest.warns(AudioLensWarning):
        divided = list(lens.iter_cache(PROMPTS, codes, batch_size=2, progress=False, **asked))
    assert [one.prompts for one in divided] == [one.prompts for one in parts]
    for one, other in zip(divided, parts, strict=True):
        torch.testing.assert_close(one.stack("resid_post"), other.stack("resid_post"), atol=1e-4, rtol=1e-4)


def test_a_row_that_does_not_fit_is_refused_with_what_it_needs(lens: Any, short: Short) -> None:
    short(0)
    with (
        pytest.warns(AudioLensWarning, match="at most 1 run at once"),
        pytest.raises(
            TooLittleMemoryError, match=r"of cpu, which has .* needs about .* \(weights .* MiB, keys.*can't allocate"
        ),
    ):
        lens.generate(PROMPTS[:2], 0.4, seeds=0)
    with pytest.raises(TooLittleMemoryError, match="more for recordings .cache_device='cpu' keeps"):
        lens.generate("jazz", 0.4, seeds=0, sites="resid_post")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": None}, "transformers' own sampler draws a batch from one random state"),
        ({"exact": True}, "exact=True fixes the number of rows"),
        ({"interventions": [al.Apply(lambda value: value, site="resid_post")]}, "would be called again"),
    ],
)
def test_a_batch_whose_rows_belong_together_is_not_divided(
    lens: Any, short: Short, given: dict[str, Any], message: str
) -> None:
    short(1)
    with pytest.raises(TooLittleMemoryError, match=message):
        lens.generate(PROMPTS[:2], 0.4, **{"seeds": 0, **given})


def test_other_errors_are_not_taken_for_lack_of_memory(lens: Any, short: Short) -> None:
    short(1, InputError)
    with pytest.raises(InputError, match="DefaultCPUAllocator"):
        lens.generate(PROMPTS[:2], 0.4, seeds=0)


def test_memory_that_runs_out_inside_a_traced_block_is_recognised(
    lens: Any, vector: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnsight raises errors of the model from its own thread, under another class."""
    asked: dict[str, Any] = {"seconds": 0.4, "seeds": 0, "interventions": [al.Add(vector, layers=[1])]}
    expected = lens.generate(PROMPTS[:3], batch_size=2, **asked)
    norm = lens.model.decoder.model.decoder.layers[1].final_layer_norm
    own = type(norm).forward

    def forward(module: Any, value: torch.Tensor) -> torch.Tensor:
        # Under guidance, there are two entries per row.
        if module is norm and len(value) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return own(module, value)

    monkeypatch.setattr(type(norm), "forward", forward)
    with pytest.warns(AudioLensWarning, match="at most 2 run at once"):
        assert torch.equal(lens.generate(PROMPTS[:3], **asked).codes, expected.codes)
