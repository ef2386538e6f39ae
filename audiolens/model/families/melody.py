"""MusicGen Melody, which has no cross-attention: chroma and text form a prefix in the decoder's own sequence."""

from dataclasses import replace

from audiolens.model.conditioning import prefixed
from audiolens.model.families.family import Family
from audiolens.model.families.musicgen import MUSICGEN, attention_sites
from audiolens.model.site_access import MLP, Positions, Tap

MELODY = Family(
    name="MusicGen Melody",
    architecture="MusicgenMelodyForConditionalGeneration",
    conditioning="prefix",
    inputs=prefixed,
    decoder=MUSICGEN.decoder,
    parts=replace(MUSICGEN.parts, cross_attention=None, cross_attention_norm=None),
    entry_taps={
        # With a prefix, the embeddings are computed in two steps, but they are always the input of `embed_positions`.
        "hook_embed": Tap(f"{MUSICGEN.decoder}.embed_positions", "input", in_place=True),
        "hook_pos_embed": Positions(f"{MUSICGEN.decoder}.embed_positions", "output"),
    },
    block_taps={
        "hook_resid_pre": Tap("", "input"),
        "ln1.hook_normalized": Tap("self_attn_layer_norm", "output"),
        **attention_sites("attn", "self_attn"),
        "hook_attn_out": Tap("self_attn", "output", item=0),
        "hook_resid_mid": Tap("final_layer_norm", "input", in_place=True),
        "mlp.hook_pre": Tap("fc1", "output", MLP),
        "mlp.hook_post": Tap("fc2", "input", MLP),
        "hook_mlp_out": Tap("fc2", "output"),
        # A block of this family returns a pair, whose second item is the attention weights or None.
        "hook_resid_post": Tap("", "output", item=0),
    },
    exit_taps=MUSICGEN.exit_taps,
)
