"""The logit lens, which shows what each block predicts (`read`) and what each block would play (`listen`)."""

from analysis.logit_lens.audible import Audible, listen
from analysis.logit_lens.reading import LogitLensResult, read

__all__ = ["Audible", "LogitLensResult", "listen", "read"]
