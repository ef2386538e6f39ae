"""The configuration of an opened model: its sizes, rates and codebook delays, and how text reaches the decoder."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from audiolens.checks import shown
from audiolens.door import guarded
from audiolens.errors import UnsupportedModelError
from audiolens.model.timeline import delays_of

if TYPE_CHECKING:
    from audiolens.model.families.family import Family


@guarded
@dataclass(frozen=True)
class LensConfig:
    """The configuration of an opened model. Rates are in hertz, and `delays` are in steps, one per codebook.

    `conditioning` is "cross-attention", or "prefix" if the decoder's own sequence begins with the conditioning, which
    consists of `chroma_length` chroma frames and the text. `max_steps` is the largest number of positions, including
    the prefix.
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

    @property
    def has_prefix(self) -> bool:
        """Whether the conditioning is a prefix in the decoder's own sequence, before step 0."""
        return self.conditioning == "prefix"

    def prefix(self, tokens: int) -> int:
        """The number of positions before step 0, given the number of tokens in the text."""
        return self.chroma_length + tokens if self.has_prefix else 0


def config_of(model: Any, family: "Family") -> LensConfig:
    """Read the `LensConfig` of a model from the model's own configuration.

    Raises:
        UnsupportedModelError: if the configuration does not agree with the model's modules.
    """
    decoder, codec = model.config.decoder, model.config.audio_encoder
    embeddings, heads = family.embeddings(model), family.heads(model)
    counts = {
        "blocks": (decoder.num_hidden_layers, len(family.blocks(model))),
        "codebooks": (decoder.num_codebooks, len(embeddings)),
        "codebook heads": (decoder.num_codebooks, len(heads)),
    }
    for part, (promised, held) in counts.items():
        if promised != held:
            raise UnsupportedModelError(f"the configuration states {promised} {part}, but the decoder has {held}.")
    pad = model.generation_config.decoder_start_token_id
    if pad is not None and (not isinstance(pad, int) or not 0 <= pad <= decoder.vocab_size):
        raise UnsupportedModelError(
            f"the generation configuration has decoder_start_token_id={shown(pad)}: expected 0 to {decoder.vocab_size}."
        )
    _refuse_positions(model.config.text_encoder)
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
        chroma_length=int(model.config.chroma_length) if family.has_prefix else 0,
    )


def _refuse_positions(text_encoder: Any) -> None:
    """Raise an error if T5's relative positions are undefined. T5 divides by log(maximum distance / (buckets / 4))."""
    buckets = getattr(text_encoder, "relative_attention_num_buckets", None)
    furthest = getattr(text_encoder, "relative_attention_max_distance", None)
    if isinstance(buckets, int) and isinstance(furthest, int) and not 0 < buckets // 4 < furthest:
        raise UnsupportedModelError(
            f"the text encoder has relative_attention_num_buckets={buckets} and relative_attention_max_distance="
            f"{furthest}: expected at least 4 buckets, and a distance of more than a quarter of their number."
        )
