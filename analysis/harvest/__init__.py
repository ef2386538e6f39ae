"""Record the activations of any number of clips in a folder, for probes, sparse autoencoders and directions.

`harvest` generates clips (or takes given codes) and writes activations shard by shard; an interrupted harvest resumes.
`Harvest.load` opens the folder lazily: as an `ActivationCache`, or as a torch data set of single vectors. `plan` says
how large a harvest will be.
"""

from typing import TYPE_CHECKING

from analysis.store.on_first_use import exports

if TYPE_CHECKING:
    from analysis.harvest.experiment import harvest as harvest
    from analysis.harvest.experiment import plan as plan
    from analysis.harvest.opened import Harvest as Harvest
    from analysis.harvest.planned import HarvestPlan as HarvestPlan
    from analysis.harvest.vectors import ShardOrder as ShardOrder
    from analysis.harvest.vectors import Vectors as Vectors

__all__ = ["Harvest", "HarvestPlan", "ShardOrder", "Vectors", "harvest", "plan"]

_MODULES = {
    "harvest": "experiment",
    "plan": "experiment",
    "Harvest": "opened",
    "HarvestPlan": "planned",
    "ShardOrder": "vectors",
    "Vectors": "vectors",
}
__getattr__, __dir__ = exports(__name__, _MODULES, globals())
