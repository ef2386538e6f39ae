"""Find the forward hooks that act on a module's calls."""

from typing import Any

from torch import nn


def acting_hooks(module: nn.Module) -> list[Any]:
    """Return the hooks that can change what a call of the module returns.

    Once a model was asked for its hidden states or attentions, transformers leaves hooks on its modules. They only
    collect outputs, and are left out.
    """
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return [hook for hook in hooks if not str(getattr(hook, "__module__", "")).startswith("transformers.utils.")]
