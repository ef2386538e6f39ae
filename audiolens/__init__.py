"""audiolens: find where a text-to-music transformer represents a musical concept, and turn that concept up or down.

Public names are imported only on first use (PEP 562). `import audiolens` therefore does not load torch,
transformers or nnsight, and command-line tools that use audiolens start quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from audiolens import etude as etude
    from audiolens import measure as measure
    from audiolens import prompts as prompts
    from audiolens.cache.activation_cache import ActivationCache as ActivationCache
    from audiolens.control.gating import gate as gate
    from audiolens.control.target import Targeted as Targeted
    from audiolens.control.target import steer_to as steer_to
    from audiolens.directions import schedules as schedules
    from audiolens.directions.difference_in_means import difference_in_means as difference_in_means
    from audiolens.directions.directions import Directions as Directions
    from audiolens.directions.directions import orthogonalised as orthogonalised
    from audiolens.directions.erase import Erase as Erase
    from audiolens.directions.estimators import estimate as estimate
    from audiolens.directions.estimators import estimators as estimators
    from audiolens.directions.steering import steer as steer
    from audiolens.gates import Gate as Gate
    from audiolens.interventions import Ablate as Ablate
    from audiolens.interventions import Add as Add
    from audiolens.interventions import Apply as Apply
    from audiolens.interventions import Clamp as Clamp
    from audiolens.interventions import Intervention as Intervention
    from audiolens.interventions import Replace as Replace
    from audiolens.interventions import Scale as Scale
    from audiolens.lens import AudioLens as AudioLens
    from audiolens.tracing.generation import Generation as Generation
    from audiolens.tracing.recording import Reading as Reading
    from audiolens.tracing.sampling import Sampling as Sampling

_MODULES = {
    "errors": "audiolens.errors",
    "etude": "audiolens.etude",
    "measure": "audiolens.measure",
    "prompts": "audiolens.prompts",
    "schedules": "audiolens.directions.schedules",
}
_NAMES = {
    "ActivationCache": "audiolens.cache.activation_cache",
    "Directions": "audiolens.directions.directions",
    "difference_in_means": "audiolens.directions.difference_in_means",
    "estimate": "audiolens.directions.estimators",
    "estimators": "audiolens.directions.estimators",
    "orthogonalised": "audiolens.directions.directions",
    "Gate": "audiolens.gates",
    "gate": "audiolens.control.gating",
    "Generation": "audiolens.tracing.generation",
    "Intervention": "audiolens.interventions",
    "Ablate": "audiolens.interventions",
    "Add": "audiolens.interventions",
    "Apply": "audiolens.interventions",
    "Clamp": "audiolens.interventions",
    "Erase": "audiolens.directions.erase",
    "Replace": "audiolens.interventions",
    "Scale": "audiolens.interventions",
    "AudioLens": "audiolens.lens",
    "Reading": "audiolens.tracing.recording",
    "Sampling": "audiolens.tracing.sampling",
    "Targeted": "audiolens.control.target",
    "steer": "audiolens.directions.steering",
    "steer_to": "audiolens.control.target",
}
__all__ = [
    "Ablate",
    "ActivationCache",
    "Add",
    "Apply",
    "AudioLens",
    "Clamp",
    "Directions",
    "Erase",
    "Gate",
    "Generation",
    "Intervention",
    "Reading",
    "Replace",
    "Sampling",
    "Scale",
    "Targeted",
    "difference_in_means",
    "estimate",
    "estimators",
    "etude",
    "gate",
    "measure",
    "orthogonalised",
    "prompts",
    "schedules",
    "steer",
    "steer_to",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _NAMES:
        value = getattr(import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'audiolens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_NAMES})
