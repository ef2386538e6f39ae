"""A lens opens models that it can read and edit, for any weights, and names the component that it cannot."""

import copy
import random
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnsight.intervention.source import STATE

import audiolens as al
from audiolens.errors import InputError, UnsupportedModelError
from audiolens.model.site_access import Tap, View

FAMILIES = ["lens", "stereo_lens", "melody_lens", "stereo_melody_lens"]


@cache
def loaded(kind: Any, name: str, **options: Any) -> Any:
    return kind.from_pretrained(name, **options).eval()


def fresh(lens: Any, **options: Any) -> Any:
    """The model of a lens as transformers alone loads it."""
    return copy.deepcopy(loaded(type(lens.model), lens.name, **options))


def blocks(model: Any) -> Any:
    return model.decoder.model.decoder.layers


@pytest.mark.parametrize("weights", ["zero", "nan", "huge"])
@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_nothing_to_the_proof(request: Any, name: str, weights: str) -> None:
    lens = request.getfixturevalue(name)
    model = fresh(lens)
    for parameter in model.parameters():
        parameter.data.fill_({"zero": 0.0, "nan": torch.nan, "huge": 1e30}[weights])
    assert al.AudioLens(model, lens.tokenizer).config == lens.config


@pytest.mark.parametrize(
    "options", [{"dtype": torch.bfloat16}, {"dtype": torch.float16}, {"attn_implementation": "eager"}]
)
@pytest.mark.parametrize("name", ["lens", "melody_lens"])
def test_neither_are_number_formats_nor_the_kernel_of_attention(request: Any, name: str, options: Any) -> None:
    lens = request.getfixturevalue(name)
    al.AudioLens(fresh(lens, **options), lens.tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_opening_a_model_leaves_no_trace(request: Any, name: str) -> None:
    lens = request.getfixturevalue(name)
    model = fresh(lens)
    tokens = dict(lens.tokenizer(["fast piano"], return_tensors="pt"))
    given = {**tokens, "do_sample": False, "max_new_tokens": 12}
    expected, settings = model.generate(**given), model.generation_config.to_dict()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    before = random.getstate(), torch.get_rng_state()
    al.AudioLens(model, lens.tokenizer)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert model.generation_config.to_dict() == settings
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert not any(module.__dict__[STATE].sourced for module in model.modules())
    assert torch.equal(model.generate(**given), expected)


def rebuilt(forward: Callable[..., Any], place: int) -> Callable[[Any], None]:
    """Gives a block another forward, under a name of its own."""

    def change(model: Any) -> None:
        block = blocks(model)[place]
        block.__class__ = type("Rebuilt", (type(block),), {"forward": forward, "built": type(block).forward})

    return change


def pair(self: Any, *given: Any, **named: Any) -> Any:
    """As a block of another family returns it."""
    return self.built(*given, **named), None


def turned(self: Any, *given: Any, **named: Any) -> Any:
    """Steps before rows, as fairseq has them."""
    return self.built(*given, **named).transpose(0, 1)


def skipping_around(self: Any, hidden_states: Any, mask: Any, text: Any, **given: Any) -> Any:
    """Skip connections that hold other tensors than the norms read: a write there would change the branch alone."""
    middle = hidden_states + self.self_attn(self.self_attn_layer_norm(hidden_states), attention_mask=mask)[0]
    late = middle + self.encoder_attn(self.encoder_attn_layer_norm(1 * middle), key_value_states=text)[0]
    return late + self.fc2(self.activation_fn(self.fc1(self.final_layer_norm(1 * late))))


def wider(model: Any) -> None:
    block = blocks(model)[2]
    block.fc1, block.fc2 = torch.nn.Linear(48, 100), torch.nn.Linear(100, 48)


def tied(model: Any) -> None:
    blocks(model)[2] = blocks(model)[1]


def without(path: str, child: str) -> Callable[[Any], None]:
    return lambda model: delattr(model.get_submodule(path), child)


def fewer(path: str, child: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        module = model.get_submodule(path)
        setattr(module, child, getattr(module, child)[:3])

    return change


BODY = "decoder.model.decoder"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"{BODY}.layers.2", "fc1"), "does not look like MusicGen: .* has no part 'fc1'"),
        (without(BODY, "embed_positions"), "has no part 'decoder.model.decoder.embed_positions'"),
        (without("decoder", "lm_heads"), "has no part 'decoder.lm_heads'"),
        (fewer("decoder", "lm_heads"), "states 4 codebook heads, but the decoder has 3"),
        (fewer(BODY, "embed_tokens"), "states 4 codebooks, but the decoder has 3"),
        (wider, r"blocks\.2\.mlp\.hook_pre has shape \(2, 4, 100\).* expects row=2 step=4 d_mlp=96: its fc1"),
        (
            rebuilt(pair, 1),
            r"blocks\.1\.hook_resid_post: a block: the lens expects a tensor as its output, but found tuple",
        ),
        (rebuilt(turned, 2), r"blocks\.2\.hook_resid_post has shape \(4, 2, 48\)"),
        (rebuilt(skipping_around, 1), "an edit would not change .*: blocks.1.hook_resid_cross is not what was written"),
        (tied, "does not run as audiolens expects of MusicGen"),
    ],
)
def test_what_does_not_match_is_named(lens: Any, change: Callable[[Any], None], message: str) -> None:
    model = fresh(lens)
    change(model)
    with pytest.raises(UnsupportedModelError, match=message):
        al.AudioLens(model, lens.tokenizer)


def test_a_model_in_training_mode_is_told_what_to_do(lens: Any) -> None:
    with pytest.raises(InputError, match=r"training mode.*model\.eval\(\)"):
        al.AudioLens(fresh(lens).train(), lens.tokenizer)


def test_one_of_several_values_is_not_taken_from_a_tensor(lens: Any) -> None:
    # An attention that returned its output alone would be served its first row.
    place = SimpleNamespace(output=torch.zeros(3, 4, 48))
    with pytest.raises(UnsupportedModelError, match="self_attn: the lens expects several values as its output"):
        Tap("self_attn", "output", item=0).open(place, View(lens.config, 3))
