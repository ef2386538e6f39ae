"""The layer-attribution plot, which shows several kinds of evidence about each block in one figure (`gather`)."""

from analysis.layer_attribution.evidence import LayerAttribution, LayerEvidence, gather

__all__ = ["LayerEvidence", "LayerAttribution", "gather"]
