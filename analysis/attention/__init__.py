"""Analyse the attention of a model.

`to_text` shows which words each step attends to, and `by_lag` shows which heads attend to positions whole beats back.
`ablate` measures how much ablating a head lowers the likelihood of given codes.
"""

from analysis.attention.ablation import HeadAblation, ablate
from analysis.attention.lags import LagAttention, beat_score, by_lag
from analysis.attention.words import TextAttention, to_text

__all__ = ["HeadAblation", "LagAttention", "TextAttention", "ablate", "beat_score", "by_lag", "to_text"]
