"""Readings: what the place in time and the half of the guidance at which a direction is read do to it (`compare`)."""

from analysis.reading_comparison.comparison import POSITIONS, Readings, compare, within_poles

__all__ = ["POSITIONS", "Readings", "compare", "within_poles"]
