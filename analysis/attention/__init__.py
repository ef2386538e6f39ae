"""Attention: which word is heard when (`to_text`), which heads look back by the beat (`by_lag`), and what switching a
head off costs (`ablate`).
"""

from analysis.attention.ablation import HeadAblation, ablate
from analysis.attention.lags import LagAttention, beat_score, by_lag
from analysis.attention.words import TextAttention, to_text

__all__ = ["HeadAblation", "LagAttention", "TextAttention", "ablate", "beat_score", "by_lag", "to_text"]
