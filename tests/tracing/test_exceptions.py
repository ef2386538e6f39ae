"""An exception during a run leaves the model, its configuration and the random state unchanged."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from melodies import ALIKE
from nnsight.intervention.source import STATE

import audiolens as al

SECONDS = 0.4
Fail = Callable[[torch.Tensor], Any]


def traced(lens: Any, fail: Fail, codes: torch.Tensor, **options: Any) -> None:
    given = {"codes": codes} if options.get("fn") != "generate" else {"seconds": SECONDS}
    with lens.trace(ALIKE[:3], guidance_scale=3.0, **given, **options):
        # Its kernel is opened for the run, and must be closed again.
        lens.site("attn.pattern", 0).value = lens.site("attn.pattern", 0).value * 0.5
        fail(lens.site("resid_post", 1).value)


def iterated(lens: Any, fail: Fail, codes: torch.Tensor) -> None:
    edit = al.Apply(fail, layers=1, rows=[2])
    for _ in lens.iter_cache(ALIKE[:3], codes, interventions=edit, batch_size=1, progress=False):
        pass


def run(name: str, **options: Any) -> Callable[[Any, Fail, torch.Tensor], None]:
    def call(lens: Any, fail: Fail, codes: torch.Tensor) -> None:
        edits = [al.Scale(0.5, site="attn.pattern", layers=0), al.Apply(fail, layers=1, seconds=(0.2, 0.4))]
        given = (SECONDS,) if name == "generate" else (codes,)
        getattr(lens, name)(ALIKE[:3], *given, interventions=edits, guidance_scale=3.0, **options)

    return call


ENTRIES: dict[str, Callable[[Any, Fail, torch.Tensor], None]] = {
    "generate": run("generate"),
    "generate from seeds": run("generate", seeds=1),
    "generate exactly": run("generate", seeds=1, exact=True),
    "run_with_cache": run("run_with_cache", sites=["attn.z", "resid_post"]),
    "run_with_interventions": run("run_with_interventions"),
    "iter_cache": iterated,
    "trace": traced,
    "trace a generation": lambda lens, fail, codes: traced(lens, fail, codes, fn="generate"),
    "trace a generation from seeds": lambda lens, fail, codes: traced(lens, fail, codes, fn="generate", seeds=1),
}


def state(lens: Any) -> list[Any]:
    """Whatever a run could have left changed."""
    modules = list(lens.model.modules())
    return [
        random.getstate(),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        lens.model.generation_config.to_dict(),
        lens.model.config.to_dict(),
        {key: value.sum().item() for key, value in lens.model.state_dict().items()},
        # Grown on demand, and in no state dict.
        lens.model.decoder.model.decoder.embed_positions.weights.sum().item(),
        lens.model.training,
        [module for module in modules if module.__dict__[STATE].sourced],
        [module.__dict__.get("forward") for module in modules],
    ]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt("no")])
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", ["lens", "melody_lens"])
def test_a_run_that_fails_leaves_everything_as_it_was(
    request: Any, codes: torch.Tensor, name: str, entry: str, error: BaseException
) -> None:
    lens = request.getfixturevalue(name)

    def fail(value: torch.Tensor) -> torch.Tensor:
        # Draws of its own are put back, too.
        torch.rand(3), random.random()
        raise error

    tokens = dict(lens.tokenizer(ALIKE[:3], return_tensors="pt"))
    hooks = {name: dict(module._forward_hooks) for name, module in lens.model.named_modules()}
    before = state(lens)
    expected = lens.run_with_cache(ALIKE[:3], codes[:3])[0]
    with pytest.raises(type(error), match="no"):
        ENTRIES[entry](lens, fail, codes[:3])
    assert state(lens) == before
    assert {name: dict(module._forward_hooks) for name, module in lens.model.named_modules()} == hooks
    assert torch.equal(lens.run_with_cache(ALIKE[:3], codes[:3])[0], expected)
    torch.manual_seed(0)
    bare = lens.model.generate(**tokens, max_new_tokens=13, do_sample=True, guidance_scale=3.0, top_k=20)
    torch.manual_seed(0)
    assert torch.equal(lens.generate(ALIKE[:3], SECONDS, top_k=20).audio, bare)
