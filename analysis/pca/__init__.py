"""PCA of activations per layer (`fit`) and over time (`trajectories`): do the poles lie apart, and from when on?"""

from analysis.pca.components import PCAResult, Trajectories, fit, trajectories

__all__ = ["PCAResult", "Trajectories", "fit", "trajectories"]
