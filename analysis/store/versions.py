"""Versions of the installed packages that stored results depend on."""

from importlib.metadata import version

_MEASURING = ("librosa", "numpy", "scipy", "scikit-learn", "pandas")


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that a study's numbers depend on."""
    from audiolens.model import provenance

    return {**provenance.versions(), **{name: version(name) for name in _MEASURING}}
