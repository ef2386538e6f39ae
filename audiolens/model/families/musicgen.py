"""MusicGen of every size, mono and stereo, in which text reaches the decoder by cross-attention."""

from audiolens.model.conditioning import attended
from audiolens.model.families.family import BlockPaths, Family
from audiolens.model.site_access import (
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

_KERNEL = "attention_interface_1"
"""The operation that calls the attention kernel in the forward pass of an attention module, in any implementation."""


def attention_sites(prefix: str, module: str) -> dict[str, Tap]:
    """The sites inside a self-attention module, in the order in which its forward pass reaches them."""
    return {
        f"{prefix}.hook_q": Tap(f"{module}.q_proj", "output", HEADS),
        f"{prefix}.hook_k": Tap(f"{module}.k_proj", "output", HEADS),
        f"{prefix}.hook_v": Tap(f"{module}.v_proj", "output", HEADS),
        f"{prefix}.hook_pattern": Pattern(module, "inputs", PATTERN, op=_KERNEL),
        f"{prefix}.hook_z": Tap(f"{module}.out_proj", "input", HEADS),
        f"{prefix}.hook_result": Result(f"{module}.out_proj", "input", RESULT),
    }


def _cross_attention(prefix: str, module: str) -> dict[str, Tap]:
    """The sites inside a cross-attention module, with keys and values on the text side.

    Keys and values are projected once per clip and then come from the key-value cache. They are therefore read at the
    attention kernel, which receives them at every step.
    """
    return {
        **attention_sites(prefix, module),
        f"{prefix}.hook_k": Tap(module, "inputs", TEXT_HEADS, item=2, op=_KERNEL),
        f"{prefix}.hook_v": Tap(module, "inputs", TEXT_HEADS, item=3, op=_KERNEL),
        f"{prefix}.hook_pattern": Pattern(module, "inputs", TEXT_PATTERN, op=_KERNEL),
    }


_DECODER = "decoder.model.decoder"

PARTS = BlockPaths(
    attention_norm="self_attn_layer_norm",
    attention="self_attn",
    cross_attention_norm="encoder_attn_layer_norm",
    cross_attention="encoder_attn",
    mlp_norm="final_layer_norm",
    mlp_in="fc1",
    activation="activation_fn",
    mlp_out="fc2",
)

MUSICGEN = Family(
    name="MusicGen",
    architecture="MusicgenForConditionalGeneration",
    conditioning="cross-attention",
    inputs=attended,
    decoder=_DECODER,
    parts=PARTS,
    entry_taps={
        "hook_text_states": Tap(_DECODER, "inputs", TEXT, item="encoder_hidden_states"),
        "hook_embed": Tap(_DECODER, "output", op="inputs_embeds_0"),
        "hook_pos_embed": Positions(f"{_DECODER}.embed_positions", "output"),
    },
    block_taps={
        "hook_resid_pre": Tap("", "input"),
        "ln1.hook_normalized": Tap("self_attn_layer_norm", "output"),
        **attention_sites("attn", "self_attn"),
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
