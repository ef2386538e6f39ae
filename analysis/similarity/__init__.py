"""Cosine similarity between directions at different layers (`cosine_map`), or between named sets (`compare`)."""

from analysis.similarity.cosines import Comparison, CosineMap, chance_cosine, chance_p, compare, cosine_map

__all__ = ["Comparison", "CosineMap", "chance_cosine", "chance_p", "compare", "cosine_map"]
