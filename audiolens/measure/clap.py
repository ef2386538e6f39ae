"""Score how well clips match a text, and compute embeddings of clips, with transformers' ClapModel.

CLAP is described in Wu et al. (2023), "Large-scale Contrastive Language-Audio Pretraining". This module needs torch, so
`audiolens.measure` imports it only on first use. The weights are downloaded once. A clip's score and embedding do not
depend on the other clips. transformers' feature extractor makes random choices (it crops clips longer than ten seconds
and, with fusion, marks one clip of each batch as longer), so clips are passed in a form to which these choices do not
apply.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch.nn.functional import cosine_similarity, normalize

from audiolens.checks import in_order, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, ModelFilesError, ModelNotFoundError
from audiolens.measure.clips import Audio, Clip, read
from audiolens.model.known_models import CONFIG
from audiolens.model.memory import amount, weight_bytes
from audiolens.model.model_files import downloaded, staged
from audiolens.model.tokens import note_unread, panics_are_errors, tell_unread
from audiolens.sound.codec import resampled
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.fitting import Fitting

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT = "laion/clap-htsat-unfused"
LENGTHS_DIFFER = 0.02
"""The largest difference between the lengths of a clip and its reference, in seconds."""
Clap = tuple[Any, Any]
"""A ClapModel and its ClapProcessor."""
Model = str | os.PathLike[str] | Clap


@guarded
def clap_score(
    audio: Audio,
    texts: str | Sequence[str],
    sample_rate: float | None = None,
    *,
    model: Model = DEFAULT,
    batch_size: int = 16,
) -> Float[np.ndarray, " row"]:
    """Return how well each clip matches its text: the cosine similarity between CLAP embeddings, from -1 to 1.

    The score of a clip is the mean over its ten-second windows.

    Args:
        audio: clips as for any measure; they are mixed to mono and resampled to the model's rate (48 kHz).
        texts: one text for all clips, or one per clip.
        sample_rate: sample rate of arrays, in Hz.
        model: a hub name, a folder that `save_pretrained` wrote, or (ClapModel, ClapProcessor).
        batch_size: windows per batch.

    Raises:
        InputError: if clips and texts differ in number, or if the audio cannot be measured.
        ModelNotFoundError: if the model does not exist or cannot be downloaded.

    The score does not show how good a clip sounds. CLAP understands text only coarsely (it is almost insensitive to
    tempo), so compare scores only for the same text, and pair clips by seed.
    """
    clips, _ = read(audio, sample_rate, centred=False)
    listed = [texts] if isinstance(texts, str) else list(in_order("texts", texts, "texts"))
    if not listed or not all(isinstance(text, str) and text.strip() for text in listed):
        raise InputTypeError(f"texts={shown(texts)}: expected a text, or one per clip.")
    if len(listed) not in (1, len(clips)):
        raise InputError(f"{len(listed)} texts for {len(clips)} clips: give one text, or one per clip.")
    clap, processor = opened(model)
    embeddings = _embedded(clips, clap, processor, whole_batch_size(batch_size))
    # The text embedding is read at the first token, so padding must be on the right regardless of the tokenizer.
    with panics_are_errors():
        tokens = processor.tokenizer(listed, padding=True, padding_side="right", truncation=False)
    of_text = clap.config.text_config
    limit = min(processor.tokenizer.model_max_length, of_text.max_position_embeddings - of_text.pad_token_id - 1)
    longest = len(tokens["input_ids"][0])
    if longest > limit:
        raise InputError(f"a text has {longest} tokens, but CLAP reads at most {limit}: shorten it.")
    note_unread(listed, processor.tokenizer)
    tell_unread()
    with torch.no_grad():
        inputs = {
            name: torch.tensor(tokens[name], dtype=torch.long, device=clap.device)
            for name in ("input_ids", "attention_mask")
        }
        words = clap.get_text_features(**inputs).pooler_output.float().cpu().numpy()
    words = np.broadcast_to(words, (len(clips), words.shape[1]))
    return np.array([float((windows @ word).mean()) for windows, word in zip(embeddings, words, strict=True)])


@guarded
def clap_embeddings(
    audio: Audio, sample_rate: float | None = None, *, model: Model = DEFAULT, batch_size: int = 16
) -> list[Float[np.ndarray, "window feature"]]:
    """Return CLAP's unit-norm embedding of each ten-second window of each clip; the last window can be shorter.

    The arguments and errors are those of `clap_score`.
    """
    clips, _ = read(audio, sample_rate, centred=False)
    return _embedded(clips, *opened(model), whole_batch_size(batch_size))


@guarded
def clap_distance(
    audio: Audio,
    reference: Audio,
    sample_rate: float | None = None,
    *,
    model: Model = DEFAULT,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Return how far each clip is from its reference, in CLAP's embedding and in the layers before it.

    The distances of a clip are means over its ten-second windows.

    Args:
        audio: clips as for any measure, such as steered ones.
        reference: one clip of the same length for each of them, such as the unsteered clip of the same prompt and seed.
        sample_rate, model, batch_size: as in `clap_score`.

    Returns:
        One row per clip. `clap` is 1 - the cosine between the two embeddings. `lpaps` compares the features in front of
        and after each stage of the audio encoder: the squared distance between unit vectors (over channels), averaged
        over positions and then over stages. Both are 0 for equal clips, and at most 2 and 4. `lpaps` is like
        that of Manor & Michaeli (2024), "Zero-Shot Unsupervised and Text-Based Audio Editing Using DDPM Inversion", but
        chooses, normalises and averages features differently, so its values cannot be compared with theirs.

    Raises:
        InputError: if there is not one reference per clip, or if a clip and its reference differ in length.
        ModelNotFoundError: as in `clap_score`.

    The change that steering is meant to cause also makes clips differ. Compare the distance with that between clips of
    two seeds.
    """
    sides = [read(one, sample_rate, centred=False)[0] for one in (audio, reference)]
    if len(sides[0]) != len(sides[1]):
        raise InputError(f"{len(sides[0])} clips and {len(sides[1])} references: give one reference per clip.")
    for row, (one, other) in enumerate(zip(*sides, strict=True)):
        if abs(one.seconds - other.seconds) > LENGTHS_DIFFER:
            raise InputError(
                f"clip {row} is {one.seconds:.2f} s long, and its reference {other.seconds:.2f} s: cut them to one "
                "length."
            )
    clap, processor = opened(model)
    (windows, counts), (others, of_others) = (_windows(side, processor.feature_extractor) for side in sides)
    if counts != of_others:
        # Lengths that differ by less than a frame can still be cut differently.
        raise InputError("a clip and its reference are cut into different numbers of windows: cut them to one length.")

    def compared(rows: slice) -> torch.Tensor:
        one, other = (_features(side[rows], clap, processor, output_hidden_states=True) for side in (windows, others))
        # Half precision would give equal clips a distance.
        cosine = cosine_similarity(one.pooler_output.float(), other.pooler_output.float(), dim=-1).clamp(max=1)
        stages = zip(one.hidden_states, other.hidden_states, strict=True)
        apart = [(normalize(a.float()) - normalize(b.float())).square().sum(1).mean((1, 2)) for a, b in stages]
        return torch.stack([1 - cosine, torch.stack(apart).mean(0)], dim=1).cpu()

    found = _in_batches(compared, len(windows), clap, processor, whole_batch_size(batch_size))
    means = [part.mean(0) for part in np.split(found, np.cumsum(counts)[:-1])]
    return pd.DataFrame(np.stack(means).astype(float), columns=["clap", "lpaps"])


def opened(model: Model) -> Clap:
    """Return the model and its processor; models loaded by name or folder are cached."""
    if isinstance(model, str | os.PathLike):
        return _loaded(os.fspath(model))
    if isinstance(model, tuple | list) and len(model) == 2:
        clap, processor = model
        if hasattr(clap, "get_audio_features") and hasattr(processor, "feature_extractor"):
            return clap, processor
    raise InputTypeError(
        f"model={type(model).__name__}: expected a hub name, a folder, or a pair (ClapModel, ClapProcessor)."
    )


@lru_cache(maxsize=2)
def _loaded(name: str) -> Clap:
    from transformers import ClapConfig, ClapModel, ClapProcessor

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        folder = Path(name).expanduser()
        # Reject weights that exist only as a pickle file, because unpickling a downloaded file could run any code.
        with staged(folder if folder.is_dir() else downloaded(name, None)) as files:
            if files.config.get("model_type") != "clap":
                raise ModelFilesError(f"{folder / CONFIG} is not the configuration of a CLAP model.")
            files.refuse_larger(ClapModel, ClapConfig.from_pretrained(files.folder, local_files_only=True))
            clap: Any = ClapModel.from_pretrained(files.folder, use_safetensors=True, **options)
            return clap.eval(), ClapProcessor.from_pretrained(files.folder, **options)
    except Exception as error:
        # transformers raises many kinds of errors for incomplete model files.
        detail = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelNotFoundError(
            f"the CLAP model {shown(name)} could not be loaded: {detail} Give a hub name such as {DEFAULT!r} "
            "(downloaded on first use), a folder, or (ClapModel, ClapProcessor)."
        ) from error


def _embedded(clips: Sequence[Clip], clap: Any, processor: Any, size: int) -> list[Float[np.ndarray, "window feature"]]:
    windows, counts = _windows(clips, processor.feature_extractor)

    def embed(rows: slice) -> torch.Tensor:
        return _features(windows[rows], clap, processor).pooler_output.float().cpu()

    return np.split(_in_batches(embed, len(windows), clap, processor, size), np.cumsum(counts)[:-1])


def _windows(clips: Sequence[Clip], extractor: Any) -> tuple[list[np.ndarray], list[int]]:
    """Return the windows of all clips, and the number of each clip's windows."""
    rate, longest = extractor.sampling_rate, extractor.nb_max_samples
    windows: list[np.ndarray] = []
    counts: list[int] = []
    for clip in clips:
        samples = resampled(clip.samples, clip.sample_rate, rate)
        cut = [samples[start : start + longest] for start in range(0, len(samples), longest)]
        # A remainder under half a second contains little information, but would have as much weight as a full window.
        cut = [part for part in cut if len(part) >= rate / 2] or cut[:1]
        windows += cut
        counts.append(len(cut))
    return windows, counts


def _features(windows: Sequence[np.ndarray], clap: Any, processor: Any, **asked: bool) -> Any:
    """Return the output of the audio encoder for windows, of which `pooler_output` are the embeddings."""
    extractor = processor.feature_extractor
    with _numpy_random_state():
        inputs = extractor(windows, sampling_rate=extractor.sampling_rate, return_tensors="np")
    mels = torch.from_numpy(inputs["input_features"]).to(clap.device, clap.dtype)
    is_longer = torch.zeros(len(mels), 1, dtype=torch.bool, device=clap.device)
    with torch.no_grad():
        return clap.get_audio_features(input_features=mels, is_longer=is_longer, **asked)


def _in_batches(
    function: Callable[[slice], torch.Tensor], windows: int, clap: Any, processor: Any, size: int
) -> Float[np.ndarray, "window value"]:
    extractor = processor.feature_extractor
    fit = Fitting(
        clap.device, f"windows of {extractor.nb_max_samples / extractor.sampling_rate:g} s for CLAP",
        lambda: f"{amount(weight_bytes(clap))} for weights", at_once=size, instead="a smaller CLAP model",
    )  # fmt: skip
    return torch.cat([found for _, found in fit.run(windows, function)]).numpy()


@contextmanager
def _numpy_random_state() -> Iterator[None]:
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
