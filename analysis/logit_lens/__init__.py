"""The logit lens: what the model predicts after each block (`read`), and what each block would play (`listen`)."""

from analysis.logit_lens.audible import Audible, listen
from analysis.logit_lens.reading import LogitLensResult, read

__all__ = ["Audible", "LogitLensResult", "listen", "read"]
