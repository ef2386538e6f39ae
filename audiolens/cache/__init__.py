"""Recorded activations: the cache, the decomposition of the residual stream, and the file format for both."""

from audiolens.cache.activation_cache import ActivationCache as ActivationCache
