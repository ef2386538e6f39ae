"""Analyse attention: which words each step attends to (`to_text`), which heads attend at multiples of the beat
(`by_lag`), and how much ablating a head lowers the likelihood of given codes (`ablate`).
"""

from analysis.attention.ablation import HeadAblation, ablate
from analysis.attention.lags import LagAttention, beat_score, by_lag
from analysis.attention.words import TextAttention, to_text

__all__ = ["HeadAblation", "LagAttention", "TextAttention", "ablate", "beat_score", "by_lag", "to_text"]
