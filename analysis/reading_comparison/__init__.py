"""Compare the directions that a concept has at different positions in time and in different guidance branches."""

from analysis.reading_comparison.comparison import POSITIONS, Readings, compare, within_poles

__all__ = ["POSITIONS", "Readings", "compare", "within_poles"]
