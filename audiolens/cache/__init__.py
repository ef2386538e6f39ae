"""Recorded activations: the cache, its file format, and the decomposition of the residual stream."""

from audiolens.cache.activation_cache import ActivationCache as ActivationCache
