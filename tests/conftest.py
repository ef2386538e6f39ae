"""Fixtures: tiny checkpoints with random weights, written once per session with save_pretrained."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

# Before anything imports nnsight, which puts a method on `object` that beartype cannot hash.
import beartype  # noqa: F401
import pytest
import shapes
import torch

# Before anything imports the packages whose shapes are checked.
shapes.wrap_only_what_states_a_shape()

torch.set_num_threads(1)

pytest_plugins = ("command_line",)

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

WORDS = [
    "fast",
    "slow",
    "bright",
    "dark",
    "calm",
    "piano",
    "guitar",
    "drums",
    "a",
    "with",
    "and",
    "music",
    "song",
    "the",
    "of",
    "loud",
    "soft",
    "jazz",
]


def benchmark_script(name: str) -> ModuleType:
    """A script of `benchmarks/` as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=40
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


CHROMA = 7


def write_model(
    folder: Path,
    *,
    channels: int = 1,
    d_model: int = 48,
    layers: int = 3,
    melody: bool = False,
    words: Sequence[str] = WORDS,
) -> Path:
    import transformers
    from transformers import EncodecConfig, EncodecFeatureExtractor, T5Config

    kind = "MusicgenMelody" if melody else "Musicgen"
    torch.manual_seed(0)
    vocab = 32
    tokens = max(32, 3 + len(words))
    text = T5Config(vocab_size=tokens, d_model=24, d_kv=6, d_ff=48, num_layers=2, num_heads=4, n_positions=64)
    codec = EncodecConfig(
        target_bandwidths=[0.5],
        sampling_rate=16000,
        audio_channels=1,
        num_filters=4,
        hidden_size=16,
        codebook_dim=16,
        codebook_size=vocab,
        upsampling_ratios=[8, 5, 4, 4],
        num_lstm_layers=1,
        normalize=False,
        chunk_length_s=None,
    )
    decoder = getattr(transformers, f"{kind}DecoderConfig")(
        vocab_size=vocab,
        max_position_embeddings=128,
        num_hidden_layers=layers,
        ffn_dim=2 * d_model,
        num_attention_heads=4,
        hidden_size=d_model,
        num_codebooks=4 * channels,
        audio_channels=channels,
        dropout=0.1,
    )
    own = {"num_chroma": 12, "chroma_length": CHROMA} if melody else {}
    config = getattr(transformers, f"{kind}Config")(text_encoder=text, audio_encoder=codec, decoder=decoder, **own)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        # Fresh weights give nearly flat logits; louder ones make codes depend on text, history and edits.
        for parameter in model.decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
    for key, value in {"pad_token_id": vocab, "bos_token_id": vocab, "decoder_start_token_id": vocab}.items():
        setattr(model.generation_config, key, value)
    model.generation_config.do_sample = True
    model.generation_config.guidance_scale = 3.0
    model.save_pretrained(folder)
    write_tokenizer(folder, words)
    if not melody:
        EncodecFeatureExtractor(feature_size=1, sampling_rate=16000).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mono MusicGen: 3 blocks of width 48, 4 codebooks of 32, 25 frames a second at 16 kHz."""
    return write_model(tmp_path_factory.mktemp("mono"))


@pytest.fixture(scope="session")
def stereo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two channels and eight codebooks."""
    return write_model(tmp_path_factory.mktemp("stereo"), channels=2)


@pytest.fixture(scope="session")
def codes() -> torch.Tensor:
    """Codes of five short clips for any of the mono models: row codebook frame."""
    return torch.randint(0, 32, (5, 4, 15), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def vector() -> torch.Tensor:
    """A direction in the residual stream of any of the models."""
    return torch.randn(48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def lens(checkpoint: Path) -> Any:
    from audiolens import AudioLens

    return AudioLens.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def stereo_lens(stereo_checkpoint: Path) -> Any:
    from audiolens import AudioLens

    return AudioLens.from_pretrained(stereo_checkpoint)


@pytest.fixture(scope="session")
def melody_lens(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A mono MusicGen Melody of the same sizes: 7 chroma frames and the text stand before the audio steps."""
    from audiolens import AudioLens

    return AudioLens.from_pretrained(write_model(tmp_path_factory.mktemp("melody"), melody=True))


@pytest.fixture(scope="session")
def stereo_melody_lens(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same with two channels and eight codebooks."""
    from audiolens import AudioLens

    return AudioLens.from_pretrained(write_model(tmp_path_factory.mktemp("stereo-melody"), channels=2, melody=True))


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the playground, as the command serves it."""
    from visitors import serving

    with serving(tmp_path_factory.mktemp("play")) as (found, _):
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from chromium import launched

    with launched() as opened:
        yield opened
