"""During a run, nnsight wraps only the modules that the run reads."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnsight.intervention.source import Controller

import audiolens as al

PROMPTS, SECONDS = ["slow dark guitar"], 0.2


def served(lens: Any) -> set[str]:
    return {name for name, one in lens.model.named_modules() if isinstance(one.__dict__.get("forward"), Controller)}


DECODER = "decoder.model.decoder"
BESIDE = {"", DECODER}
"""The model, whose result a run takes, and the decoder, which tells its steps."""


@pytest.mark.parametrize(
    ("site", "modules"),
    [
        ("resid_post", {f"{DECODER}.layers.1"}),
        ("attn.z", {f"{DECODER}.layers.1.self_attn.out_proj"}),
        ("mlp_out", {f"{DECODER}.layers.1.fc2"}),
    ],
)
@pytest.mark.parametrize("entry", ["generate", "run_with_interventions"])
def test_a_run_serves_what_it_reads_alone(
    lens: Any, codes: torch.Tensor, entry: str, site: str, modules: Iterable[str]
) -> None:
    before, seen = served(lens), []
    edit = al.Apply(lambda _value: seen.append(served(lens)), site=site, layers=1)

    given = SECONDS if entry == "generate" else codes[:1]
    getattr(lens, entry)(PROMPTS, given, interventions=edit)

    assert seen
    assert all(one == BESIDE | set(modules) for one in seen)
    assert len(before) > 50
    assert served(lens) == before


def test_the_forward_of_an_instance_runs_in_every_run(checkpoint: Path, codes: torch.Tensor) -> None:
    from transformers import AutoTokenizer, MusicgenForConditionalGeneration

    model = MusicgenForConditionalGeneration.from_pretrained(checkpoint)
    part = model.decoder.model.decoder.layers[0].fc1
    plain, calls = part.forward, []

    def counted(value: torch.Tensor) -> torch.Tensor:
        calls.append(value.shape[1])
        return plain(value)

    part.forward = counted
    lens = al.AudioLens(model, AutoTokenizer.from_pretrained(checkpoint))
    calls.clear()

    lens.run_with_cache(PROMPTS, codes[:1], layers=1)
    assert calls == [codes.shape[-1] + 3]  # the tail of the delay pattern too
    lens.generate(PROMPTS, SECONDS)
    assert len(calls) > 5
