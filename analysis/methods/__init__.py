"""Compare ways of making a direction, and other ways to steer, by effect and preservation at the same place.

`compare` steers concepts by all methods and returns a `MethodsResult`. `METHODS` lists the methods that it knows.
"""

from analysis.methods.area import area_under
from analysis.methods.experiment import compare
from analysis.methods.reading import NotApplicable, Place, Reading
from analysis.methods.result import MethodsResult
from analysis.methods.table import METHODS, Method, estimator

__all__ = [
    "METHODS",
    "Method",
    "MethodsResult",
    "NotApplicable",
    "Place",
    "Reading",
    "area_under",
    "compare",
    "estimator",
]
