"""What a run recorded: the cache, the residual stream taken apart, and the file that keeps both."""

from audiolens.cache.activation_cache import ActivationCache as ActivationCache
