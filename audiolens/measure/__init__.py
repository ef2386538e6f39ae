"""What is heard in a clip, as numbers (tempo, brightness, register, mode and more), and what is lost in it.

Every measure is a function of (audio, sample_rate). Audio is a numpy array or torch tensor shaped [sample],
[channel, sample] (one number comes back) or [row, channel, sample] (an array [row]); channels are averaged. Where no
number means anything (silence, the pitch of noise) it is NaN, never a made-up one; audio that cannot be measured (NaN
samples, under 0.1 s, an impossible rate) is a ValueError. Loads librosa and scipy when first used, and never torch.
"""

from audiolens.measure.failure import code_entropy, failed, failures
from audiolens.measure.pitch import mode, pitch
from audiolens.measure.rhythm import onset_rate, pulse_clarity, tempo, tempo_candidates
from audiolens.measure.table import MEASURES, UNITS, table
from audiolens.measure.timbre import brightness, loudness

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
]
