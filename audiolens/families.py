"""What differs between model families, and nothing else: where each site lives in the decoder's modules.

A `Tap` (`taps.py`) says what serves a site's value, and how the value is laid out. The order of the taps is the
order in which the model reaches them, which is the order in which a trace must ask for them.

Adding a family is adding a `Family`: its class name in the configuration, the path of its decoder, and its taps.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from audiolens import conditioning
from audiolens.door import guarded
from audiolens.errors import UnsupportedModelError
from audiolens.sites import Site, resolve
from audiolens.taps import (
    HEADS,
    LOGITS,
    MLP,
    PATTERN,
    RESULT,
    TEXT,
    TEXT_HEADS,
    TEXT_PATTERN,
    Pattern,
    Positions,
    Result,
    Tap,
)
from audiolens.text import Text
from audiolens.timeline import delays_of


@dataclass(frozen=True)
class Family:
    """One model family: how its models are recognised, how they are told their text, and where its sites live, before,
    in and after the blocks.

    `inputs` makes the keyword arguments of a forward from the model, encoded prompts, and whether guidance adds its
    null half.
    """

    name: str
    architecture: str
    conditioning: Literal["cross-attention", "prefix"]
    inputs: Callable[[Any, Text, bool], dict[str, Any]]
    decoder: str
    entry_taps: Mapping[str, Tap]
    block_taps: Mapping[str, Tap]
    exit_taps: Mapping[str, Tap]

    @property
    def model_taps(self) -> dict[str, Tap]:
        """The sites that stand in no block."""
        return {**self.entry_taps, **self.exit_taps}

    def hooks(self) -> tuple[str, ...]:
        """The sites of a block, in the model's order."""
        return tuple(self.block_taps)


_KERNEL = "attention_interface_1"
"""The call, inside an attention's forward, of whichever attention kernel the model was loaded with."""


def _attention(prefix: str, module: str) -> dict[str, Tap]:
    """The sites inside a self-attention, in the order its forward reaches them."""
    return {
        f"{prefix}.hook_q": Tap(f"{module}.q_proj", "output", HEADS),
        f"{prefix}.hook_k": Tap(f"{module}.k_proj", "output", HEADS),
        f"{prefix}.hook_v": Tap(f"{module}.v_proj", "output", HEADS),
        f"{prefix}.hook_pattern": Pattern(module, "inputs", PATTERN, op=_KERNEL),
        f"{prefix}.hook_z": Tap(f"{module}.out_proj", "input", HEADS),
        f"{prefix}.hook_result": Result(f"{module}.out_proj", "input", RESULT),
    }


def _cross_attention(prefix: str, module: str) -> dict[str, Tap]:
    """The same of a cross-attention, whose keys and values stand on the text's side.

    They are projected once a clip and then come from the key-value cache: the kernel is where they always pass.
    """
    return {
        **_attention(prefix, module),
        f"{prefix}.hook_k": Tap(module, "inputs", TEXT_HEADS, item=2, op=_KERNEL),
        f"{prefix}.hook_v": Tap(module, "inputs", TEXT_HEADS, item=3, op=_KERNEL),
        f"{prefix}.hook_pattern": Pattern(module, "inputs", TEXT_PATTERN, op=_KERNEL),
    }


_DECODER = "decoder.model.decoder"

MUSICGEN = Family(
    name="MusicGen",
    architecture="MusicgenForConditionalGeneration",
    conditioning="cross-attention",
    inputs=conditioning.attended,
    decoder=_DECODER,
    entry_taps={
        "hook_text_states": Tap(_DECODER, "inputs", TEXT, item="encoder_hidden_states"),
        "hook_embed": Tap(_DECODER, "output", op="inputs_embeds_0"),
        "hook_pos_embed": Positions(f"{_DECODER}.embed_positions", "output"),
    },
    block_taps={
        "hook_resid_pre": Tap("", "input"),
        "ln1.hook_normalized": Tap("self_attn_layer_norm", "output"),
        **_attention("attn", "self_attn"),
        "hook_attn_out": Tap("self_attn", "output", item=0),
        "hook_resid_mid": Tap("encoder_attn_layer_norm", "input", in_place=True),
        **_cross_attention("cross_attn", "encoder_attn"),
        "hook_cross_attn_out": Tap("encoder_attn", "output", item=0),
        "hook_resid_cross": Tap("final_layer_norm", "input", in_place=True),
        "mlp.hook_pre": Tap("fc1", "output", MLP),
        "mlp.hook_post": Tap("fc2", "input", MLP),
        "hook_mlp_out": Tap("fc2", "output"),
        "hook_resid_post": Tap("", "output"),
    },
    exit_taps={
        "ln_final.hook_normalized": Tap(f"{_DECODER}.layer_norm", "output"),
        "hook_logits": Tap("decoder", "output", LOGITS, item="logits"),
    },
)

MELODY = Family(
    name="MusicGen Melody",
    architecture="MusicgenMelodyForConditionalGeneration",
    conditioning="prefix",
    inputs=conditioning.prefixed,
    decoder=_DECODER,
    entry_taps={
        # Made in two steps where the prefix is put before it: its sum with the positions is where it always passes.
        "hook_embed": Tap(f"{_DECODER}.embed_positions", "input", in_place=True),
        "hook_pos_embed": Positions(f"{_DECODER}.embed_positions", "output"),
    },
    block_taps={
        "hook_resid_pre": Tap("", "input"),
        "ln1.hook_normalized": Tap("self_attn_layer_norm", "output"),
        **_attention("attn", "self_attn"),
        "hook_attn_out": Tap("self_attn", "output", item=0),
        "hook_resid_mid": Tap("final_layer_norm", "input", in_place=True),
        "mlp.hook_pre": Tap("fc1", "output", MLP),
        "mlp.hook_post": Tap("fc2", "input", MLP),
        "hook_mlp_out": Tap("fc2", "output"),
        # A block of this family returns a pair, its attention's weights (or None) second.
        "hook_resid_post": Tap("", "output", item=0),
    },
    exit_taps=MUSICGEN.exit_taps,
)

FAMILIES = (MUSICGEN, MELODY)


@guarded
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
    _refuse_quantised(model, family)
    decoder = _module(model, family.decoder, family)
    layers = _module(decoder, "layers", family)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise UnsupportedModelError(f"{kind}: {family.decoder}.layers holds no blocks.")
    for tap in family.block_taps.values():
        for layer in layers:
            _module(layer, tap.module, family)
    for tap in family.model_taps.values():
        _module(model, tap.module, family)
    return family


def _refuse_quantised(model: nn.Module, family: Family) -> None:
    """Weights that are packed integers have no values to read, and their modules no plain tensors to edit."""
    packed = [name for name, one in model.named_parameters() if not one.is_floating_point()]
    packed += [name for name, part in model.named_modules() if "quantized" in type(part).__module__]
    if packed or getattr(model, "is_quantized", False):
        part = packed[0] if packed else "its weights"
        raise UnsupportedModelError(
            f"a quantised {family.name} ({part}) is not supported: load it in float32, bfloat16 or float16."
        )


def config_of(model: Any, family: Family) -> LensConfig:
    """The numbers of a model, from its own configuration.

    Raises:
        UnsupportedModelError: if configuration and modules disagree.
    """
    decoder, codec = model.config.decoder, model.config.audio_encoder
    body: Any = model.get_submodule(family.decoder)
    embeddings: Any = _module(body, "embed_tokens", family)
    heads: Any = _module(model.decoder, "lm_heads", family)
    said = {
        "blocks": (decoder.num_hidden_layers, len(body.layers)),
        "codebooks": (decoder.num_codebooks, len(embeddings)),
        "codebook heads": (decoder.num_codebooks, len(heads)),
    }
    for part, (promised, held) in said.items():
        if promised != held:
            raise UnsupportedModelError(f"the configuration says {promised} {part}, the decoder holds {held}.")
    pad = model.generation_config.decoder_start_token_id
    if pad is not None and (not isinstance(pad, int) or not 0 <= pad <= decoder.vocab_size):
        raise UnsupportedModelError(
            f"the generation configuration has decoder_start_token_id={pad!r:.80}: expected 0 to {decoder.vocab_size}."
        )
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


def shapes(family: Family, config: LensConfig) -> dict[str, str]:
    """Every site of a model by its full name, in the model's order, with the shape of its values."""
    blocks = [Site(hook, layer) for layer in range(config.n_layers) for hook in family.block_taps]
    sites = [*map(Site, family.entry_taps), *blocks, *map(Site, family.exit_taps)]
    return {site.name: tap_of(family, site).form.described(config) for site in sites}


def tap_of(family: Family, site: Site) -> Tap:
    return (family.model_taps if site.layer is None else family.block_taps)[site.hook]


def places(
    family: Family, config: LensConfig, sites: str | Sequence[str], layers: int | Iterable[int] | None
) -> list[Site]:
    """The places that names and layers select in a family's models."""
    return resolve(sites, layers, hooks=family.block_taps, model_hooks=family.model_taps, n_layers=config.n_layers)


def order(family: Family, sites: Iterable[Site]) -> list[Site]:
    """Sites in the order the model reaches them."""
    head, hooks, tail = list(family.entry_taps), list(family.block_taps), list(family.exit_taps)

    def rank(site: Site) -> tuple[float, int]:
        if site.layer is not None:
            return site.layer, hooks.index(site.hook)
        return (-1, head.index(site.hook)) if site.hook in head else (math.inf, tail.index(site.hook))

    return sorted(sites, key=rank)
