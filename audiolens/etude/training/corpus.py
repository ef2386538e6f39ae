"""étude's training corpus: synthesised clips, as 16-bit sound for the codec and as codes for the decoder.

Labels and captions are not stored: `synth.draw(index, seed)` reproduces them, so a file of codes and a seed are
sufficient.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Integer

from audiolens.etude import synth
from audiolens.etude.form import Music
from audiolens.files.atomic import written

CHUNK = 256
Progress = Callable[[int, int], None]


def rendered(
    index: int, seed: int, seconds: float = synth.CLIP_SECONDS, music: Music = synth.BUNDLED
) -> Int[np.ndarray, " sample"]:
    """Clip number `index` of the set with this seed, as 16-bit samples."""
    return np.round(synth.labelled_clip(index, seed, seconds, music).audio * 32767).astype(np.int16)


def audio(
    n: int,
    seed: int,
    path: Path,
    progress: Progress = lambda *_: None,
    seconds: float = synth.CLIP_SECONDS,
    music: Music = synth.BUNDLED,
) -> Int[np.ndarray, "clip sample"]:
    """The first `n` clips of the set with this seed, which are rendered once and stored in `path`."""
    if not path.exists() or len(np.load(path, mmap_mode="r")) != n:
        clips = np.empty((n, round(seconds * synth.SAMPLE_RATE)), dtype=np.int16)
        render = partial(rendered, seed=seed, seconds=seconds, music=music)
        with _workers() as pool:
            for index, clip in enumerate(pool.map(render, range(n), chunksize=16)):
                clips[index] = clip
                progress(index + 1, n)
        _write(path, clips)
    return np.load(path, mmap_mode="r")


def codes(
    n: int,
    seed: int,
    codec: Any,
    folder: Path,
    progress: Progress = lambda *_: None,
    device: str = "cpu",
    seconds: float = synth.CLIP_SECONDS,
    music: Music = synth.BUNDLED,
) -> Integer[np.ndarray, "clip codebook frame"]:
    """The codes of the first `n` clips of a set, stored in `folder` one chunk at a time, so that runs can resume.

    Each codec has its own subfolder, so codes from another codec are never used. Each kind of music needs its own
    `folder`.
    """
    folder = folder / _fingerprint(codec)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, n, CHUNK)
    paths = [folder / f"{seed}-{start:07d}.npy" for start in starts]
    codec = codec.to(device).eval()
    render = partial(rendered, seed=seed, seconds=seconds, music=music)
    with _workers() as pool:
        # The next chunk is rendered while the current one is encoded.
        ahead: dict[int, Iterator[np.ndarray]] = {}
        todo = [(s, p) for s, p in zip(starts, paths, strict=True) if not p.exists()]
        for position, (start, path) in enumerate(todo):
            for later_start, _ in todo[position : position + 2]:
                if later_start not in ahead:
                    ahead[later_start] = pool.map(render, range(later_start, later_start + CHUNK), chunksize=16)
            _write(path, _encode(codec, np.stack(list(ahead.pop(start))), device))
            progress(n - (len(todo) - position - 1) * CHUNK, n)
    return np.concatenate([np.load(path) for path in paths])[:n]


def _fingerprint(codec: Any) -> str:
    """A hash of the modules that determine the codes: the encoder and the codebooks, but not the decoder."""
    digest = hashlib.sha256()
    for part in (codec.encoder, codec.quantizer):
        for _, tensor in sorted(part.state_dict().items()):
            digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def _encode(
    codec: Any, clips: Int[np.ndarray, "clip sample"], device: str
) -> Integer[np.ndarray, "clip codebook frame"]:
    encoded = []
    for start in range(0, len(clips), 32):
        batch = torch.from_numpy(clips[start : start + 32].astype(np.float32) / 32767)[:, None].to(device)
        encoded.append(codec.encode(batch).audio_codes[0].to("cpu", torch.uint8))
    return torch.cat(encoded).numpy()


def _workers() -> ProcessPoolExecutor:
    # Processes are spawned, because a fork of a process whose torch threads have run can hang.
    return ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))


def _write(path: Path, array: np.ndarray) -> None:
    with written(path) as whole, whole.open("wb") as file:
        np.save(file, array)
