"""Cosine similarity between the directions of layers (`cosine_map`), and of named sets at each layer (`compare`)."""

from analysis.similarity.cosines import Comparison, CosineMap, chance_cosine, chance_p, compare, cosine_map

__all__ = ["Comparison", "CosineMap", "chance_cosine", "chance_p", "compare", "cosine_map"]
