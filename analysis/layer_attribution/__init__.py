"""The layer-attribution plot: several kinds of evidence about each block, in one figure (`gather`)."""

from analysis.layer_attribution.evidence import Evidence, LayerAttribution, gather

__all__ = ["Evidence", "LayerAttribution", "gather"]
