"""The command `audiolens models`."""

from __future__ import annotations

from analysis.commands.common import Json, print_table, say, to_json


def models(as_json: Json = False) -> None:
    """List the known models. Models that are on this disk work offline.

    Other models of the same families also work, given by hub name or folder.

    Example:

        audiolens models --json
    """
    from audiolens.model.known_models import BESIDE, BUNDLED, HUB

    rows = [
        {"model": name, "kind": "bundled", "here": (folder / "config.json").is_file()}
        for name, folder in BUNDLED.items()
    ]
    rows += [{"model": name, "kind": "repository", "here": True} for name, folder in BESIDE.items() if folder.is_dir()]
    rows += [{"model": name, "kind": "hub", "here": _downloaded(name)} for name in HUB]
    if as_json:
        say(to_json(rows))
        return
    print_table([{**row, "here": "ready, works offline" if row["here"] else "not on this disk"} for row in rows])


def _downloaded(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)
