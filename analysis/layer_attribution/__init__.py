"""The layer-attribution plot: what each kind of evidence says of each block, in one figure (`gather`)."""

from analysis.layer_attribution.evidence import Evidence, LayerAttribution, gather

__all__ = ["Evidence", "LayerAttribution", "gather"]
