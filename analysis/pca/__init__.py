"""PCA of activations per layer (`fit`) and over time (`trajectories`), to show where and when the poles separate."""

from analysis.pca.components import PCAResult, Trajectories, fit, trajectories

__all__ = ["PCAResult", "Trajectories", "fit", "trajectories"]
