"""Find features: train sparse autoencoders on a site, listen to their latents, and put them into the model.

`train` trains one on the activations of prompts or of a harvest, `load` opens one in SAELens's file format, and `score`
says what it keeps. `index` finds the sounds of every latent and the attributes that it matches, and `splice` is the
intervention that replaces activations by their reconstruction, or ablates, clamps and scales single latents.
"""

from typing import TYPE_CHECKING

from analysis.store.on_first_use import exports

if TYPE_CHECKING:
    from analysis.features.clips import Clips as Clips
    from analysis.features.clips import synthesised as synthesised
    from analysis.features.indexing import FeatureIndex as FeatureIndex
    from analysis.features.indexing import index as index
    from analysis.features.loading import load as load
    from analysis.features.sae import SAE as SAE
    from analysis.features.scoring import Scores as Scores
    from analysis.features.scoring import score as score
    from analysis.features.splicing import Splice as Splice
    from analysis.features.splicing import splice as splice
    from analysis.features.training import train as train

__all__ = [
    "SAE", "Clips", "FeatureIndex", "Scores", "Splice", "index", "load", "score", "splice", "synthesised", "train",
]  # fmt: skip

_MODULES = {
    "SAE": "sae",
    "Clips": "clips",
    "FeatureIndex": "indexing",
    "Scores": "scoring",
    "Splice": "splicing",
    "index": "indexing",
    "load": "loading",
    "score": "scoring",
    "splice": "splicing",
    "synthesised": "clips",
    "train": "training",
}
__getattr__, __dir__ = exports(__name__, _MODULES, globals())
