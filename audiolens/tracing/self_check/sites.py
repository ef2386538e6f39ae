"""Check at load that every site has the shape listed by the lens, and that the model uses values written to the site.

The check runs two forward passes over a few steps, then tests the projections (`projections.py`) and a tiny generation
(`steps.py`). The first forward pass reads every site and compares its shape with the one in `lens.sites()`. The second
writes a different value at every site of the residual stream, in every block, and reads what arrives. Each state must
be the sum of the *written* previous state and the *written* part added to it, up to the input of the final norm. Sums
of small whole numbers are exact in every dtype and do not depend on the weights. A model with random, zero or broken
weights therefore passes, and a model that would ignore an edit fails.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from audiolens.cache.decomposition import Stream
from audiolens.errors import ActivationOverflow, AudioLensError, UnsupportedModelError
from audiolens.interventions import Apply
from audiolens.model.site_access import sizes_of
from audiolens.model.sites import Site
from audiolens.model.timeline import codes_timeline
from audiolens.model.traced_model import TracedModel
from audiolens.tracing.recording import Reading
from audiolens.tracing.run_on_codes import Forward
from audiolens.tracing.sampling import Sampling
from audiolens.tracing.self_check.projections import prove_projections
from audiolens.tracing.self_check.steps import prove_time
from audiolens.tracing.trace import SiteOrderError, SiteValue, opened

ROWS = 2
"""The number of rows is larger than 1, so that confused axes are detected."""


def prove(traced: TracedModel) -> None:
    """Raise an error unless a model is built as its family describes.

    Raises:
        UnsupportedModelError: if the model is built differently; the message names the site or part that does not
            match.
        InputError: if the model is in training mode.
    """
    with _explained(traced):
        _reads(traced)
        _writes(traced)
        prove_projections(traced)
        prove_time(traced)


def _reads(traced: TracedModel) -> None:
    family, config = traced.family, traced.config
    codes = torch.zeros(ROWS, config.n_codebooks, 1, dtype=torch.long, device=traced.device)
    steps = codes_timeline(codes, config).steps
    sizes = {**sizes_of(config), "row": ROWS, "step": steps, "query": steps, "token": 1}
    # Other implementations (such as flash attention) expose every site except those that need the mask.
    masks = traced.model.config.decoder._attn_implementation in ("sdpa", "eager")
    sites = [site for site in family.sites(config) if masks or not family.tap(site).needs_mask]
    with torch.no_grad(), opened(traced, [None] * ROWS, codes, sampling=Sampling(guidance_scale=1.0)):
        for site in sites:
            _compare(traced, site, sizes, config.prefix(1) + steps)


def _compare(traced: TracedModel, site: Site, sizes: dict[str, int], keys: int) -> None:
    """Inside a trace, compare the shape of one site with the expected one."""
    tap = traced.family.tap(site)
    try:
        value = SiteValue(traced, site).value
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{site.name}: {error}") from None
    expected = {axis: sizes.get(axis, keys if tap.form.square else 1) for axis in tap.form.axes}
    if tuple(value.shape) != tuple(expected.values()):
        axes = " ".join(f"{axis}={size}" for axis, size in expected.items())
        raise UnsupportedModelError(
            f"{site.name} has shape {tuple(value.shape)} in this model, but the lens expects {axes}: its "
            f"{tap.module or 'block'} is not built as audiolens expects."
        )


def _writes(traced: TracedModel) -> None:
    links, layers = Stream.of(traced).links(), range(traced.config.n_layers)
    hooks = list(dict.fromkeys(hook for link in links for hook in link))
    step = torch.arange(traced.config.d_model, device=traced.device)
    # Whole numbers from -5 to 5, different at every site.
    written = {hook: ((index + 1) * step % 11 - 5).to(traced.dtype) for index, hook in enumerate(hooks)}
    seen: dict[tuple[str, int], Tensor] = {}

    def writing(hook: str, layer: int) -> Callable[[Tensor], Tensor]:
        def function(value: Tensor) -> Tensor:
            seen[hook, layer] = value
            return written[hook].to(value.device, value.dtype).expand_as(value)

        return function

    edits = [
        Apply(writing(hook, layer), site=hook, layers=[layer], prefix=traced.config.has_prefix)
        for layer in layers
        for hook in hooks
    ]
    forward = Forward.checked(traced, [None], None, Reading(()), interventions=edits, stop_at_layer=len(layers))
    end, _ = forward.whole()
    for layer in layers:
        for before, part, after in links:
            names = (f"blocks.{layer}.hook_{hook}" for hook in (after, before, part))
            _arrived(*names, found=seen[after, layer], expected=written[before] + written[part])
        if layer + 1 < len(layers):
            _arrived(
                f"blocks.{layer + 1}.hook_resid_pre",
                f"blocks.{layer}.hook_resid_post",
                found=seen["resid_pre", layer + 1],
                expected=written["resid_post"],
            )
    last = f"blocks.{layers[-1]}.hook_resid_post"
    _arrived("the final norm's input", last, found=end, expected=written["resid_post"])


def _arrived(value: str, *sources: str, found: Tensor, expected: Tensor) -> None:
    # The tolerance allows for the rounding of a compiled model.
    if not torch.allclose(found, expected.to(found.device, found.dtype).expand_as(found), rtol=0, atol=0.25):
        raise UnsupportedModelError(
            f"an edit would not change the output of this model: {value} is not what was written at "
            f"{' and '.join(sources)}. The model's blocks do not add up as audiolens expects."
        )


@contextmanager
def _explained(traced: TracedModel) -> Iterator[None]:
    """Raise any unexpected error as an `UnsupportedModelError`."""
    try:
        yield
    except ActivationOverflow as error:
        raise UnsupportedModelError(f"an edit would not change the output of this model: {error}") from error
    except Exception as error:
        # The check reads sites in the family's order, so an error about the order means that the model differs.
        known = isinstance(error, AudioLensError | torch.cuda.OutOfMemoryError)
        if known and not isinstance(error, SiteOrderError):
            raise
        raise UnsupportedModelError(
            f"{type(traced.model).__name__} does not run as audiolens expects of {traced.config.family}: "
            f"{type(error).__name__}: {str(error).strip()[:300]}"
        ) from error
