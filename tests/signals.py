"""Synthetic sounds with known tempo and spectrum."""

import numpy as np

RATE = 16_000
SECONDS = 5.12
TIME = np.arange(round(SECONDS * RATE)) / RATE


def drums(bpm: float, seed: int = 0, offbeat: float = 0.0, rate: int = RATE) -> np.ndarray:
    """A kick and a noise burst on every beat, with a seeded phase, over quiet noise; `offbeat` soft notes between."""
    rng = np.random.default_rng(seed)
    n = round(SECONDS * rate)
    seconds = np.arange(round(0.15 * rate)) / rate
    kick = np.sin(2 * np.pi * 55 * seconds) * np.exp(-seconds / 0.05) * (1 - seconds / 0.15)
    burst = rng.standard_normal(len(seconds)) * np.exp(-seconds / 0.015)
    note = 0.3 * np.sin(2 * np.pi * 440 * seconds) * np.minimum(seconds / 0.01, 1) * (1 - seconds / 0.15)
    sound = 1e-4 * rng.standard_normal(n)
    for beat in np.arange(rng.random() * 60 / bpm, SECONDS, 60 / bpm):
        for start, part in ((beat, kick + burst), (beat + 30 / bpm, note if rng.random() < offbeat else 0 * note)):
            first = round(start * rate)
            sound[first : first + len(part)] += part[: max(n - first, 0)]
    return (0.2 * sound).astype(np.float32)


def noise(seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(len(TIME))).astype(np.float32)
