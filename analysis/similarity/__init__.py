"""Cosines between directions: of layers (`cosine_map`), and of named sets layer by layer (`compare`)."""

from analysis.similarity.cosines import Comparison, CosineMap, chance_cosine, chance_p, compare, cosine_map

__all__ = ["Comparison", "CosineMap", "chance_cosine", "chance_p", "compare", "cosine_map"]
