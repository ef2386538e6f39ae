"""The model families that the lens can open, each in its own file."""

from torch import nn

from audiolens.errors import UnsupportedModelError
from audiolens.model.families.family import Family as Family
from audiolens.model.families.melody import MELODY
from audiolens.model.families.musicgen import MUSICGEN

FAMILIES = (MUSICGEN, MELODY)


def family_of(model: nn.Module) -> Family:
    """Return the family of a model, after checking that the model has every module that the lens relies on.

    Raises:
        UnsupportedModelError: if the model belongs to no known family, is quantised or lacks a module; the message
            names the module.
    """
    kind = type(model).__name__
    family = next((family for family in FAMILIES if family.architecture == kind), None)
    if family is None:
        known = ", ".join(family.architecture for family in FAMILIES)
        raise UnsupportedModelError(f"{kind} is not a model the lens can open: expected one of {known}.")
    _refuse_quantised(model, family)
    blocks = family.blocks(model)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise UnsupportedModelError(f"{kind}: {family.decoder} contains no blocks.")
    for tap in family.block_taps.values():
        for block in blocks:
            family.part(block, tap.module)
    for tap in family.model_taps.values():
        family.part(model, tap.module)
    return family


def _refuse_quantised(model: nn.Module, family: Family) -> None:
    """Reject a quantised model, because its packed integers cannot be read as weights and its modules provide no
    tensors to edit."""
    packed = [name for name, one in model.named_parameters() if not one.is_floating_point()]
    packed += [name for name, part in model.named_modules() if "quantized" in type(part).__module__]
    if packed or getattr(model, "is_quantized", False):
        part = packed[0] if packed else "its weights"
        raise UnsupportedModelError(
            f"a quantised {family.name} ({part}) is not supported: load it in float32, bfloat16 or float16."
        )
