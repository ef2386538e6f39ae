"""The exact hash of a model is kept between calls, and computed again after any change of a weight or buffer."""

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from audiolens.model import weight_hash
from audiolens.model.weight_hash import content_hash


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(300, 5, generator=draw))
        # Seven bytes: not a whole number of the words that the checksum takes.
        self.register_buffer("small", torch.arange(7, dtype=torch.uint8))
        self.lower = nn.Parameter(torch.randn(3, 3, generator=draw).to(torch.bfloat16))


def naive(model: nn.Module) -> str:
    """The hash as it was defined before any of it was kept; stored plans and stages contain it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().tobytes())
    # A class that belongs to neither torch nor transformers counts as an adapter.
    digest.update(weight_hash.adapter_settings(model))
    return digest.hexdigest()


def swap_rows(model: Any) -> None:
    model.weight.data[[3, 200]] = model.weight.data[[200, 3]]


def replace(model: Any) -> None:
    model.weight = nn.Parameter(model.weight.detach() + 1)


def through_numpy(model: Any) -> None:
    model.weight.detach().numpy()[7, 2] += 1e-3


def in_place(model: Any) -> None:
    with torch.no_grad():
        model.weight[0, 0].neg_()


def one_bit(model: Any) -> None:
    model.lower.data.view(torch.int16)[1, 1] ^= 1


CHANGES: dict[str, Callable[[Any], object]] = {
    "in place": in_place,
    "through .data": lambda model: model.weight.data.mul_(1.5),
    "through numpy": through_numpy,
    "rows swapped": swap_rows,
    "one bit": one_bit,
    "a buffer": lambda model: model.small.data[6:].add_(1),
    "replaced": replace,
    "loaded": lambda model: model.load_state_dict({name: -value.float() for name, value in model.state_dict().items()}),
    "another dtype": lambda model: setattr(model, "lower", nn.Parameter(model.lower.detach().float())),
    "rows reversed": lambda model: model.weight.data.copy_(model.weight.detach().flip(0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_follows_every_change_of_the_weights(change: str) -> None:
    model = Toy()
    before = content_hash(model)
    assert before == content_hash(model) == naive(model)
    CHANGES[change](model)
    assert content_hash(model) == naive(model) != before
    assert content_hash(copy.deepcopy(model)) == naive(model)


def test_equal_weights_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    compute = weight_hash._hashed
    monkeypatch.setattr(weight_hash, "_hashed", lambda *given: hashed.append(1) or compute(*given))
    model = Toy()
    assert len({content_hash(model) for _ in range(5)}) == 1
    assert len(hashed) == 1
    content_hash(Toy())
    assert len(hashed) == 2


def test_a_kept_hash_does_not_keep_the_model() -> None:
    model = Toy()
    content_hash(model)
    there = len(weight_hash._KEPT)
    del model
    assert len(weight_hash._KEPT) == there - 1


def test_a_model_made_for_inference_is_hashed_too() -> None:
    with torch.inference_mode():
        model = Toy()
    assert content_hash(model) == naive(model)
