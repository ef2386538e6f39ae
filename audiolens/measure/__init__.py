"""What is heard in a clip, as numbers (tempo, brightness, register, mode and more), and what is lost in it.

Every measure is a function of (audio, sample_rate). Audio is a numpy array or torch tensor shaped [sample],
[channel, sample] (one number comes back) or [row, channel, sample] (an array [row]); channels are averaged. Where no
number means anything (silence, the pitch of noise) it is NaN, never a made-up one; audio that cannot be measured (NaN
samples, under 0.1 s, an impossible rate) is a ValueError. Loads librosa and scipy when first used, and torch only for
what needs a model (`drift`, `frechet_distance`, `clap_score`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from audiolens.measure.failure import code_entropy, failed, failures
from audiolens.measure.pitch import mode, pitch
from audiolens.measure.rhythm import onset_rate, pulse_clarity, tempo, tempo_candidates
from audiolens.measure.table import MEASURES, UNITS, table
from audiolens.measure.timbre import brightness, loudness

if TYPE_CHECKING:
    from audiolens.measure.likelihood import Drift as Drift
    from audiolens.measure.likelihood import code_nats as code_nats
    from audiolens.measure.likelihood import drift as drift

_WITH_A_MODEL = {
    "Drift": "audiolens.measure.likelihood",
    "code_nats": "audiolens.measure.likelihood",
    "drift": "audiolens.measure.likelihood",
}
__all__ = [
    "tempo",
    "tempo_candidates",
    "onset_rate",
    "pulse_clarity",
    "brightness",
    "loudness",
    "pitch",
    "mode",
    "table",
    "MEASURES",
    "UNITS",
    "failed",
    "failures",
    "code_entropy",
    "Drift",
    "code_nats",
    "drift",
]


def __getattr__(name: str) -> Any:
    if name in _WITH_A_MODEL:
        value = getattr(import_module(_WITH_A_MODEL[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'audiolens.measure' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WITH_A_MODEL})
