"""Measure clips: tempo, brightness, register, mode and more, and whether steering has degraded them.

Every measure is a function of (audio, sample_rate). Audio is a numpy array or a torch tensor with one or two channels.
If its shape is [sample] or [channel, sample], the result is one number; if it is [row, channel, sample], the result is
an array [row]. Audio can also be a sound file or what `lens.generate` returned (both without a sample rate), or a list
of these. Channels are averaged and any DC offset is removed. If a measure is undefined (such as the tempo of silence or
the pitch of noise), the result is NaN. An InputError is raised if audio contains NaN, is shorter than 0.1 s or longer
than ten minutes, has an impossible sample rate, or is a damaged file. docs/measures.md describes the method and
calibration of each measure. librosa and scipy are imported on first use, and torch only for
measures that need a model (`drift`, `frechet_distance`, `clap_score`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from audiolens.measure.failure import code_entropy, failed, failures
from audiolens.measure.pitch import mode, pitch, pitch_class
from audiolens.measure.rhythm import (
    onset_rate,
    pulse_clarity,
    tempo,
    tempo_ambiguity,
    tempo_candidates,
    tempo_octave,
)
from audiolens.measure.table import EXTRA_MEASURES, MEASURES, UNITS, refuse_lacking, table, table_of_files
from audiolens.measure.timbre import brightness, loudness, ltas_centroid, rolloff

if TYPE_CHECKING:
    from audiolens.measure.clap import clap_distance as clap_distance
    from audiolens.measure.clap import clap_embeddings as clap_embeddings
    from audiolens.measure.clap import clap_score as clap_score
    from audiolens.measure.frechet import codec_features as codec_features
    from audiolens.measure.frechet import fad as fad
    from audiolens.measure.frechet import frechet_distance as frechet_distance
    from audiolens.measure.likelihood import Drift as Drift
    from audiolens.measure.likelihood import code_nats as code_nats
    from audiolens.measure.likelihood import drift as drift

_WITH_A_MODEL = {
    "clap_distance": "audiolens.measure.clap",
    "clap_embeddings": "audiolens.measure.clap",
    "clap_score": "audiolens.measure.clap",
    "codec_features": "audiolens.measure.frechet",
    "fad": "audiolens.measure.frechet",
    "frechet_distance": "audiolens.measure.frechet",
    "Drift": "audiolens.measure.likelihood",
    "code_nats": "audiolens.measure.likelihood",
    "drift": "audiolens.measure.likelihood",
}
__all__ = [
    "tempo",
    "tempo_ambiguity",
    "tempo_candidates",
    "tempo_octave",
    "onset_rate",
    "pulse_clarity",
    "brightness",
    "ltas_centroid",
    "rolloff",
    "loudness",
    "pitch",
    "pitch_class",
    "mode",
    "table",
    "table_of_files",
    "refuse_lacking",
    "MEASURES",
    "EXTRA_MEASURES",
    "UNITS",
    "failed",
    "failures",
    "code_entropy",
    "Drift",
    "code_nats",
    "drift",
    "codec_features",
    "frechet_distance",
    "fad",
    "clap_distance",
    "clap_embeddings",
    "clap_score",
]


def __getattr__(name: str) -> Any:
    if name in _WITH_A_MODEL:
        value = getattr(import_module(_WITH_A_MODEL[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'audiolens.measure' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WITH_A_MODEL})
