"""An unmerged adapter counts as part of the model: in its weights, per-head results and hash."""

import copy
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.models.musicgen import modeling_musicgen as modeling

import audiolens as al
from audiolens.errors import InputError, UnsupportedModelError
from audiolens.model.weight_hash import content_hash, weights_hash

PROMPTS = ["fast", "slow", "calm"]
CODES = torch.randint(0, 32, (3, 4, 15), generator=torch.Generator().manual_seed(0))
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


class LowRank(nn.Module):
    """LoRA as peft lays it out: two small matrices an adapter beside the base layer, whose weight it shows."""

    def __init__(self, base: nn.Linear, rank: int = 3, names: tuple[str, ...] = ("default", "other")) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(base.in_features + base.out_features)
        self.base_layer = base
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.scaling = dict.fromkeys(names, 2.0)
        self._active_adapter, self._disable_adapters = [names[0]], False
        for name in names:
            into, out = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
            for part in (into, out):
                with torch.no_grad():
                    part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * 0.3)
            self.lora_A[name], self.lora_B[name] = into, out
        self.to(base.weight.dtype)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base_layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base_layer(x)
        for name in [] if self._disable_adapters else self._active_adapter:
            out = out + self.lora_B[name](self.lora_A[name](x)) * self.scaling[name]
        return out

    def merged(self) -> nn.Linear:
        """The same in one plain layer."""
        made = nn.Linear(self.base_layer.in_features, self.base_layer.out_features, self.base_layer.bias is not None)
        with torch.no_grad():
            delta = torch.zeros_like(self.base_layer.weight)
            for name in [] if self._disable_adapters else self._active_adapter:
                into: Any = self.lora_A[name].weight
                delta += self.scaling[name] * (self.lora_B[name].weight @ into)
            made.weight.copy_(self.base_layer.weight + delta)
            if made.bias is not None:
                made.bias.copy_(self.base_layer.bias)
        return made


def wrapped(lens: Any, parts: tuple[str, ...] = ("q_proj", "out_proj"), make: Callable[[Any], Any] = LowRank) -> Any:
    """A model of its own whose projections are adapted, in every attention of every block."""
    model = type(lens.model).from_pretrained(lens.name).eval()
    for block in model.decoder.model.decoder.layers:
        for attention in filter(None, (block.self_attn, getattr(block, "encoder_attn", None))):
            for part in parts:
                setattr(attention, part, make(getattr(attention, part)))
    return model


def merged(model: Any) -> Any:
    """The same model with every adapter merged into a plain layer: what is right for it is right for the other."""
    plain = copy.deepcopy(model)
    for module in list(plain.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LowRank):
                setattr(module, name, child.merged())
    return plain


@pytest.fixture(scope="module", params=["lens", "melody_lens"])
def both(request: Any) -> tuple[Any, Any]:
    """A lens on an adapted model, and one on the same model merged."""
    lens = request.getfixturevalue(request.param)
    model = wrapped(lens)
    plain = merged(model)
    return al.AudioLens(model, lens.tokenizer), al.AudioLens(plain, lens.tokenizer)


def attentions(lens: Any) -> list[str]:
    return ["attn"] if lens.config.conditioning == "prefix" else ["attn", "cross_attn"]


@pytest.mark.parametrize("sites", ["result", "z"])
def test_results_sum_to_what_the_attention_adds(both: Any, sites: str) -> None:
    adapted, plain = both
    for name in attentions(adapted):
        read = [f"{name}.{sites}", f"{name}_out"]
        ours, theirs = (one.run_with_cache(PROMPTS, CODES, sites=read)[1] for one in both)
        weights = adapted.W_O if name == "attn" else adapted.W_O_cross
        for layer in range(3):
            found = ours[f"{name}.{sites}", layer]
            torch.testing.assert_close(found, theirs[f"{name}.{sites}", layer], **CLOSE)
            each = found if sites == "result" else torch.einsum("rshk,hkd->rshd", found, weights[layer])
            torch.testing.assert_close(each.sum(2), ours[f"{name}_out", layer], **CLOSE)
    assert plain.config == adapted.config


def test_weights_are_those_of_layer_and_adapter_together(both: Any) -> None:
    adapted, plain = both
    names = ["W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_U", "W_E"]
    if len(attentions(adapted)) == 2:
        names += ["W_Q_cross", "W_O_cross"]
    for name in names:
        for ours, theirs in zip(getattr(adapted, name), getattr(plain, name), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
            assert not ours.requires_grad
    base = adapted.model.decoder.model.decoder.layers[1].self_attn.q_proj.base_layer.weight
    assert (adapted.W_Q[1].permute(0, 2, 1).flatten(0, 1) - base).abs().max() > 0.1


def test_silencing_a_head_silences_its_adapter(both: Any) -> None:
    for name in attentions(both[0]):
        edit = al.Scale(0.0, site=f"{name}.result", heads=[2], layers=[1])
        ours, theirs = (one.run_with_interventions(PROMPTS, CODES, edit) for one in both)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        by_z = al.Scale(0.0, site=f"{name}.z", heads=[2], layers=[1])
        torch.testing.assert_close(ours, both[0].run_with_interventions(PROMPTS, CODES, by_z), rtol=1e-3, atol=1e-4)


def test_generating_with_results_recorded_and_edited_is_the_merged_model_s(both: Any) -> None:
    edit = al.Scale(0.5, site="attn.result", heads=[1], layers=[2])
    options: dict[str, Any] = {"seeds": [1, 2, 3], "interventions": edit, "sites": "attn.result", "decode": False}
    ours, theirs = (one.generate(PROMPTS, 0.4, **options) for one in both)
    assert torch.equal(ours.codes, theirs.codes)
    torch.testing.assert_close(ours.cache["attn.result", 1], theirs.cache["attn.result", 1], rtol=1e-3, atol=1e-4)


def test_the_bare_model_is_unchanged(lens: Any) -> None:
    model = wrapped(lens)
    given = {**lens.tokenizer(PROMPTS, padding=True, return_tensors="pt"), "do_sample": False, "max_new_tokens": 12}
    before = model.generate(**given)
    al.AudioLens(model, lens.tokenizer)
    assert torch.equal(model.generate(**given), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_number_formats_are_nothing_to_the_proof(lens: Any, dtype: torch.dtype) -> None:
    opened = al.AudioLens(wrapped(lens).to(dtype), lens.tokenizer)
    assert opened.W_O[0].dtype == dtype


@pytest.mark.parametrize("value", [0.0, torch.nan, 1e30])
def test_neither_are_broken_weights(lens: Any, value: float) -> None:
    model = wrapped(lens)
    for parameter in model.parameters():
        parameter.data.fill_(value)
    al.AudioLens(model, lens.tokenizer)


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def test_a_parametrised_layer_is_read_as_it_computes(lens: Any) -> None:
    model = wrapped(lens, ("out_proj",), lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()))
    opened = al.AudioLens(model, lens.tokenizer)
    torch.testing.assert_close(opened.W_O[1], 2 * lens.W_O[1])


class Squashed(LowRank):
    """An adapter that no matrix does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x).relu())


class Mixing(LowRank):
    """Linear, but a step takes from the step before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.base_layer(x.roll(1, -2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Squashed, r"layers\.0\.self_attn\.q_proj \(Squashed\) is not a matrix and a bias"),
        (Mixing, r"layers\.0\.self_attn\.q_proj \(Mixing\) gives a step a different value next to other steps"),
    ],
)
def test_what_has_no_matrix_is_refused_by_name(lens: Any, make: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        al.AudioLens(wrapped(lens, ("q_proj",), make), lens.tokenizer)


@pytest.mark.parametrize("part", ["self_attn.q_proj", "encoder_attn.out_proj", "fc1"])
def test_so_is_a_layer_to_which_a_hook_adds(lens: Any, part: str) -> None:
    model = wrapped(lens, ())
    layer = model.decoder.model.decoder.layers[2].get_submodule(part)
    layer.register_forward_hook(lambda module, given, out: out * 1.2)
    with pytest.raises(UnsupportedModelError, match=rf"layers\.2\.{part} \(Linear\) is not a matrix and a bias"):
        al.AudioLens(model, lens.tokenizer)


@pytest.mark.parametrize("part", ["self_attn", "encoder_attn"])
def test_so_is_an_attention_to_which_something_adds(lens: Any, tmp_path: Path, part: str) -> None:
    model = wrapped(lens, ())
    attention = model.decoder.model.decoder.layers[1].get_submodule(part)
    own = inspect.getsource(type(attention).forward)
    assert own.count("self.out_proj(attn_output)") == 1
    louder = own.replace("self.out_proj(attn_output)", "1.2 * self.out_proj(attn_output)")
    # In a file: nnsight reads the source.
    (tmp_path / "louder.py").write_text(
        f"import {modeling.__name__} as modeling\nglobals().update(vars(modeling))\n\n"
        f"class Louder(MusicgenAttention):\n{louder}"
    )
    found = importlib.util.spec_from_file_location("louder", tmp_path / "louder.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    attention.__class__ = module.Louder
    with pytest.raises(UnsupportedModelError, match=rf"layers\.1\.{part} \(.*\) adds more than its heads write"):
        al.AudioLens(model, lens.tokenizer)


def every(model: Any, **values: Any) -> None:
    for module in model.modules():
        if isinstance(module, LowRank):
            for name, value in values.items():
                setattr(module, name, value)


@pytest.mark.parametrize("hashed", [weights_hash, content_hash])
def test_the_active_adapter_is_in_the_hash(lens: Any, hashed: Any) -> None:
    assert hashed(copy.deepcopy(lens.model)) == hashed(lens.model)
    model = wrapped(lens)
    found = {hashed(model), hashed(lens.model)}
    assert hashed(model) in found
    for values in (
        {"_active_adapter": ["other"]},
        {"_active_adapter": ["default", "other"]},
        {"_disable_adapters": True},
        {"scaling": {"default": 1.0, "other": 2.0}},
    ):
        changed = wrapped(lens)
        every(changed, **values)
        found.add(hashed(changed))
    assert len(found) == 6


def test_directions_of_one_adapter_are_refused_with_another(lens: Any, tmp_path: Any) -> None:
    opened = al.AudioLens(wrapped(lens), lens.tokenizer)
    d = al.difference_in_means(opened, ["fast"], ["slow"], seconds=0.2, progress=False)
    d.save(tmp_path / "d.safetensors")
    al.Directions.load(tmp_path / "d.safetensors", lens=opened)
    every(opened.model, _active_adapter=["other"])
    with pytest.raises(InputError, match="has different weights"):
        al.Directions.load(tmp_path / "d.safetensors", lens=opened)
