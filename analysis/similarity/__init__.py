"""Cosine similarity between directions: between layers (`cosine_map`), and between named sets at each layer
(`compare`)."""

from analysis.similarity.cosines import Comparison, CosineMap, chance_cosine, chance_p, compare, cosine_map

__all__ = ["Comparison", "CosineMap", "chance_cosine", "chance_p", "compare", "cosine_map"]
