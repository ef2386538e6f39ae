"""What differs between model families, and nothing else: where each site lives in the decoder's modules.

A `Tap` says which module's input or output holds a site's value, and how the value is laid out. The order of the
taps is the order in which the model reaches them, which is the order in which a trace must ask for them.

Adding a family is adding a `Family`: its class name in the configuration, the path of its decoder, and its taps.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from audiolens import conditioning
from audiolens.errors import UnsupportedModelError
from audiolens.sites import Site, resolve
from audiolens.text import Text
from audiolens.timeline import delays_of

Layout = Literal["residual", "heads", "mlp"]


@dataclass(frozen=True)
class Tap:
    """Where a site's value is served.

    `module` is relative to the block (or to the decoder, for model-wide sites); `port` is that module's first
    input or its output; `item` picks one of a tuple. `in_place` marks a value that the block also keeps for its
    skip connection: replacing the module's input would change the branch and not the residual stream, so an edit
    is written into the tensor itself.
    """

    module: str
    port: Literal["input", "output"]
    layout: Layout = "residual"
    item: int | None = None
    in_place: bool = False

    def hand_back(self, envoy: Any, served: Any, value: Any) -> None:
        """Inside a run: put `value` in the place of what `envoy` served, the rest of a tuple as it was."""
        whole = value if self.item is None else (*served[: self.item], value, *served[self.item + 1 :])
        if self.port == "input":
            envoy.input = whole
        else:
            envoy.output = whole


@dataclass(frozen=True)
class Family:
    """One model family: how its models are recognised, how they are told their text, and where its sites live.

    `clock` is the decoder's position embedding, whose arguments say where a forward stands: what it embeds, with the
    positions along `clock_axis`, and how many positions came before. `inputs` makes the keyword arguments of a forward
    from the model, encoded prompts, and whether guidance adds its null half.
    """

    name: str
    architecture: str
    conditioning: Literal["cross-attention", "prefix"]
    inputs: Callable[[Any, Text, bool], dict[str, Any]]
    decoder: str
    clock: str
    clock_axis: int
    block_taps: Mapping[str, Tap]
    model_taps: Mapping[str, Tap]

    def hooks(self) -> tuple[str, ...]:
        """The sites of a block, in the model's order."""
        return tuple(self.block_taps)


def _attention(prefix: str, module: str) -> dict[str, Tap]:
    """The sites inside one attention, in the order its forward reaches them."""
    return {
        f"{prefix}.hook_q": Tap(f"{module}.q_proj", "output", "heads"),
        f"{prefix}.hook_k": Tap(f"{module}.k_proj", "output", "heads"),
        f"{prefix}.hook_v": Tap(f"{module}.v_proj", "output", "heads"),
        f"{prefix}.hook_z": Tap(f"{module}.out_proj", "input", "heads"),
    }


def _without_text_side(taps: dict[str, Tap]) -> dict[str, Tap]:
    """Keys and values of the text are computed once a clip, not once a step: not sites of the step axis."""
    return {hook: tap for hook, tap in taps.items() if not hook.endswith(("hook_k", "hook_v"))}


MUSICGEN = Family(
    name="MusicGen",
    architecture="MusicgenForConditionalGeneration",
    conditioning="cross-attention",
    inputs=conditioning.attended,
    decoder="decoder.model.decoder",
    clock="embed_positions",
    clock_axis=-1,
    block_taps={
        "hook_resid_pre": Tap("", "input"),
        "ln1.hook_normalized": Tap("self_attn_layer_norm", "output"),
        **_attention("attn", "self_attn"),
        "hook_attn_out": Tap("self_attn", "output", item=0),
        "hook_resid_mid": Tap("encoder_attn_layer_norm", "input", in_place=True),
        **_without_text_side(_attention("cross_attn", "encoder_attn")),
        "hook_cross_attn_out": Tap("encoder_attn", "output", item=0),
        "hook_resid_cross": Tap("final_layer_norm", "input", in_place=True),
        "mlp.hook_pre": Tap("fc1", "output", "mlp"),
        "mlp.hook_post": Tap("fc2", "input", "mlp"),
        "hook_mlp_out": Tap("fc2", "output"),
        "hook_resid_post": Tap("", "output"),
    },
    model_taps={"ln_final.hook_normalized": Tap("layer_norm", "output")},
)

MELODY = Family(
    name="MusicGen Melody",
    architecture="MusicgenMelodyForConditionalGeneration",
    conditioning="prefix",
    inputs=conditioning.prefixed,
    decoder="decoder.model.decoder",
    clock="embed_positions",
    clock_axis=1,
    block_taps={
        "hook_resid_pre": Tap("", "input"),
        "ln1.hook_normalized": Tap("self_attn_layer_norm", "output"),
        **_attention("attn", "self_attn"),
        "hook_attn_out": Tap("self_attn", "output", item=0),
        "hook_resid_mid": Tap("final_layer_norm", "input", in_place=True),
        "mlp.hook_pre": Tap("fc1", "output", "mlp"),
        "mlp.hook_post": Tap("fc2", "input", "mlp"),
        "hook_mlp_out": Tap("fc2", "output"),
        # A block of this family returns a pair, its attention's weights (or None) second.
        "hook_resid_post": Tap("", "output", item=0),
    },
    model_taps={"ln_final.hook_normalized": Tap("layer_norm", "output")},
)

FAMILIES = (MUSICGEN, MELODY)


@dataclass(frozen=True)
class LensConfig:
    """What a lens knows of its model. Rates are in hertz; `delays` are in steps, one a codebook.

    `conditioning` is "cross-attention", or "prefix" where the conditioning stands in the decoder's own sequence:
    `chroma_length` chroma frames, then the text. `max_steps` counts all positions of that sequence.
    """

    family: str
    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    n_codebooks: int
    vocab_size: int
    frame_rate: float
    sample_rate: int
    channels: int
    conditioning: str
    delays: tuple[int, ...]
    max_steps: int
    pad_code: int
    chroma_length: int = 0

    def prefix(self, tokens: int) -> int:
        """How many positions stand before step 0 under a text of so many tokens."""
        return self.chroma_length + tokens if self.conditioning == "prefix" else 0


def family_of(model: nn.Module) -> Family:
    """The family of a model, after checking that every module the lens relies on is there.

    Raises:
        UnsupportedModelError: naming the part that did not match.
    """
    kind = type(model).__name__
    family = next((family for family in FAMILIES if family.architecture == kind), None)
    if family is None:
        known = ", ".join(family.architecture for family in FAMILIES)
        raise UnsupportedModelError(f"{kind} is not a model the lens can open: expected one of {known}.")
    decoder = _module(model, family.decoder, family)
    _module(decoder, family.clock, family)
    layers = _module(decoder, "layers", family)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise UnsupportedModelError(f"{kind}: {family.decoder}.layers holds no blocks.")
    for tap in family.block_taps.values():
        _module(layers[0], tap.module, family)
    for tap in family.model_taps.values():
        _module(decoder, tap.module, family)
    return family


def config_of(model: Any, family: Family) -> LensConfig:
    """The numbers of a model, from its own configuration.

    Raises:
        UnsupportedModelError: if configuration and modules disagree.
    """
    decoder, codec = model.config.decoder, model.config.audio_encoder
    layers = model.get_submodule(family.decoder).layers
    if len(layers) != decoder.num_hidden_layers:
        raise UnsupportedModelError(
            f"the configuration says {decoder.num_hidden_layers} blocks, the decoder holds {len(layers)}."
        )
    pad = model.generation_config.decoder_start_token_id
    return LensConfig(
        family=family.name,
        n_layers=decoder.num_hidden_layers,
        n_heads=decoder.num_attention_heads,
        d_model=decoder.hidden_size,
        d_head=decoder.hidden_size // decoder.num_attention_heads,
        d_mlp=decoder.ffn_dim,
        n_codebooks=decoder.num_codebooks,
        vocab_size=decoder.vocab_size,
        frame_rate=float(codec.frame_rate),
        sample_rate=int(codec.sampling_rate),
        channels=int(decoder.audio_channels),
        conditioning=family.conditioning,
        delays=delays_of(decoder.num_codebooks, int(decoder.audio_channels)),
        max_steps=int(decoder.max_position_embeddings),
        pad_code=int(decoder.vocab_size if pad is None else pad),
        chroma_length=int(model.config.chroma_length) if family.conditioning == "prefix" else 0,
    )


def _module(root: nn.Module, path: str, family: Family) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"this model does not look like {family.name}: {type(root).__name__} has no part {path!r} ({error})."
        ) from None


def tap_of(family: Family, site: Site) -> Tap:
    return (family.model_taps if site.layer is None else family.block_taps)[site.hook]


def described(family: Family, config: LensConfig) -> dict[str, str]:
    """Every site of a model by its full name, with the shape of its values."""
    time = "row [prefix+]step" if config.conditioning == "prefix" else "row step"
    sizes = {
        "residual": f"{time} d_model={config.d_model}",
        "heads": f"{time} head={config.n_heads} d_head={config.d_head}",
        "mlp": f"{time} d_mlp={config.d_mlp}",
    }
    blocks = [Site(hook, layer) for layer in range(config.n_layers) for hook in family.block_taps]
    whole = [Site(hook) for hook in family.model_taps]
    return {site.name: sizes[tap_of(family, site).layout] for site in [*blocks, *whole]}


def places(
    family: Family, config: LensConfig, sites: str | Sequence[str], layers: int | Iterable[int] | None
) -> list[Site]:
    """The places that names and layers select in a family's models."""
    return resolve(sites, layers, hooks=family.block_taps, model_hooks=family.model_taps, n_layers=config.n_layers)


def order(family: Family, sites: Iterable[Site]) -> list[Site]:
    """Sites in the order the model reaches them."""
    hooks = list(family.block_taps)
    tail = list(family.model_taps)

    def rank(site: Site) -> tuple[int, int]:
        if site.layer is None:
            return (1_000_000, tail.index(site.hook))
        return (site.layer, hooks.index(site.hook))

    return sorted(sites, key=rank)
