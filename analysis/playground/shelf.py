"""The directions behind the sliders: of bundled concepts, of files, and of the folders of studies."""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.playground import ready
from analysis.playground.ready import Ready
from analysis.playground.wish import Push
from analysis.store.folder import STUDY, SUMMARY, UNSEALED_STUDY
from audiolens import prompts
from audiolens.characters import printable
from audiolens.checks import shown
from audiolens.directions.calibration import PLACE, Calibration
from audiolens.directions.directions import Directions
from audiolens.directions.strategies import changed_blocks
from audiolens.errors import DamagedError, InputError
from audiolens.files.integrity import read_json
from audiolens.files.json_shapes import refuse_other

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.prompts import PromptSet

FILE = "directions.safetensors"
"""The name of the directions in the folder of a study."""
MOST_BYTES = 16 * 2**20
"""The largest file of directions that the page accepts; those of the largest published model have 0.4 MB."""
MOST_ADDED = 32
_MOST_NAME, _MOST_POLE = 80, 40
"""Characters of a name and of a pole that the page shows."""
_CHOICE = {
    "format": str, "concept": str, "poles": [str, str],
    "choice": {"strategy": str, "layer": (int, None), "strength": float},
}  # fmt: skip
_ROOM = 1.5
"""The end of a slider, as a multiple of the strength that a placement or a study suggests."""
_WIDEST = 2.0
"""The end of a slider if no strength is known, divided by the number of blocks that change."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One slider.

    Attributes:
        key: its name in requests.
        name, poles: what it is called, and its positive and negative pole.
        sets: its prompts, if it is a bundled concept: the words with which one would ask for it.
        ready: its directions, or `None` until they have been read.
    """

    key: str
    name: str
    poles: tuple[str, str]
    sets: PromptSet | None
    ready: Ready | None

    def reach(self, push: Push) -> float:
        """Return the strength at the end of the slider."""
        assert self.ready is not None
        calibration, own = self.ready.directions.calibration, push.strategy is None
        if own and calibration is not None and _plain_place(calibration) == self.ready.place:
            return max(map(abs, calibration.strengths))
        if own and self.ready.strength is not None:
            return _ROOM * self.ready.strength
        place = self.place(push)
        return _WIDEST / len(changed_blocks(place["strategy"], place.get("layer"), self.ready.directions))

    def place(self, push: Push) -> dict[str, Any]:
        """Return where to steer, as arguments of `steer`."""
        assert self.ready is not None
        if push.strategy is None:
            return self.ready.place
        return {"strategy": push.strategy, **({} if push.layer is None else {"layer": push.layer})}

    def strength(self, push: Push) -> float | str:
        """Return the strength of a slider, or the text of its value, such as "120 BPM".

        Raises:
            InputError: if a value is given without a calibration, or outside of it.
        """
        assert self.ready is not None
        if push.value is None:
            assert push.share is not None
            return float(f"{push.share * self.reach(push):.4g}")
        calibration = self.ready.directions.calibration
        if calibration is None or push.strategy is not None:
            raise InputError(f"{self.name}: a value in a musical unit needs calibrated directions, at their own place.")
        text = f"{push.value:g} {calibration.measured_in}".strip()
        calibration.strength(text)
        return text

    def facts(self) -> dict[str, Any]:
        """Return what the page shows of it."""
        found: dict[str, Any] = {"key": self.key, "name": self.name, "poles": self.poles, "ready": False}
        if self.ready is None:
            return found
        known = self.ready.directions.calibration
        unit = None
        if known is not None:
            low, high = known.range
            unit = {"measure": known.measure, "unit": known.measured_in, "low": low, "high": high, "now": known.at(0.0)}
        return {
            **found, "ready": True, "place": self.ready.place, "layers": self.ready.directions.layers,
            "reach": self.reach(Push(self.key, 0.0)), "unit": unit, "note": self.ready.note,
        }  # fmt: skip


class Shelf:
    """All sliders of one model. Those that a visitor adds are known by an unguessable key."""

    def __init__(self, lens: AudioLens, given: Sequence[Path] = ()) -> None:
        self.lens = lens
        self.open: dict[str, Entry] = {}
        self.added: dict[str, Entry] = {}
        self._changed = threading.Lock()
        for number, path in enumerate(given):
            entry = self._of_folder(path, path.resolve().name) if path.is_dir() else self._of_file(path, path.name)
            self.open[f"given-{number}"] = replace(entry, key=f"given-{number}")
        for name in self._bundled():
            sets = prompts.load(name, lens=lens)
            self.open[name] = Entry(name, name, sets.poles, sets, ready.kept(lens, name))

    def _bundled(self) -> list[str]:
        """The concepts whose prompts this model reads, those with a measure first."""
        from analysis.sweep.concept_measures import MEASURED

        known = []
        for name in prompts.concepts(None):
            try:
                prompts.load(name, lens=self.lens)
            except InputError:
                continue
            known.append(name)
        return sorted(known, key=lambda name: (list(MEASURED).index(name) if name in MEASURED else len(MEASURED), name))

    def get(self, key: str) -> Entry:
        """Return an entry.

        Raises:
            InputError: if there is none with this key.
        """
        found = self.open.get(key) or self.added.get(key)
        if found is None:
            raise InputError(f"There is no slider {shown(key)} here any more: load its file again.")
        return found

    def read(self, key: str) -> Entry:
        """Return an entry with its directions, which are read now if they have not been."""
        entry = self.get(key)
        if entry.ready is None:
            entry = self.open[key] = replace(entry, ready=ready.read(self.lens, key))
        return entry

    def add(self, name: str, content: bytes, summary: bytes | None) -> Entry:
        """Add directions that a visitor sent: a file, or the directions and the summary of a study.

        Raises:
            InputError: if the file is damaged, does not hold directions, or is of another model.
        """
        if len(content) > MOST_BYTES:
            raise InputError(f"The file is larger than {MOST_BYTES // 2**20} MB: expected a file of directions.")
        name = printable(Path(name.replace("\\", "/")).name)[:80] or "file"
        with tempfile.TemporaryDirectory() as made:
            path = Path(made)
            (path / FILE).write_bytes(content)
            if summary is not None:
                (path / SUMMARY).write_bytes(summary)
            try:
                entry = self._of_file(path / FILE, name) if summary is None else self._of_folder(path, name)
            except InputError as error:
                # The visitor knows the file by its own name.
                text = str(error).replace(str(path / FILE), name).replace(str(path / SUMMARY), f"{name}/{SUMMARY}")
                raise type(error)(text) from None
        entry = replace(entry, key=f"added-{secrets.token_urlsafe(12)}")
        with self._changed:
            while len(self.added) >= MOST_ADDED:
                del self.added[next(iter(self.added))]
            self.added[entry.key] = entry
        return entry

    def _loaded(self, path: Path, name: str) -> Directions:
        """Read directions, and refuse those of another model by the name of their file or folder."""
        directions = Directions.load(path)
        try:
            directions.meta.refuse_other(self.lens)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        return directions

    def _of_file(self, path: Path, name: str) -> Entry:
        directions = self._loaded(path, name)
        label = printable(directions.meta.label)[:_MOST_POLE]
        sets = self._sets(directions.meta.label)
        known = directions.calibration
        place, note = None if known is None else _plain_place(known), ""
        if place is None:
            place = {"strategy": "one-to-one", "layer": directions.layers[len(directions.layers) // 2]}
            note = f"The file states no place for a strength: block {place['layer']}, the middle one, is used."
            if known is not None:
                note += " Values in a unit act at the place of the calibration."
        poles = (f"more {label or 'of it'}", "less") if sets is None else sets.poles
        title = f"{label} ({name})" if label else name
        return Entry(name, title[:_MOST_NAME], poles, sets, Ready(directions, place, note=note))

    def _of_folder(self, folder: Path, called: str) -> Entry:
        for name in (SUMMARY, FILE):
            if not (folder / name).is_file():
                raise InputError(f"{folder} has no {name}: expected the folder of a finished study.")
        try:
            facts = read_json(folder / SUMMARY, former=(UNSEALED_STUDY,))
        except InputError as error:
            raise DamagedError(f"{error} Make the study again, or load only its {FILE}.") from None
        refuse_other(folder / SUMMARY, facts, _CHOICE)
        if facts["format"] not in (STUDY, UNSEALED_STUDY):
            raise InputError(f"{folder / SUMMARY} has the format {shown(facts['format'])}: expected {STUDY}.")
        directions = self._loaded(folder / FILE, called)
        choice: Mapping[str, Any] = facts["choice"]
        place = {"strategy": choice["strategy"], **({} if choice["layer"] is None else {"layer": choice["layer"]})}
        changed_blocks(place["strategy"], place.get("layer"), directions)
        name = printable(facts["concept"])[:_MOST_POLE]
        high, low = (printable(pole)[:_MOST_POLE] for pole in facts["poles"])
        sets = self._sets(facts["concept"])
        if sets is not None and sets.poles != tuple(facts["poles"]):
            # A study of one's own prompts can have the name of a bundled concept, but not its words.
            sets = None
        made = Ready(directions, place, abs(choice["strength"]) or None)
        title = f"{name} ({printable(called)})"[:_MOST_NAME]
        return Entry(name, title, (high, low), sets, made)

    def _sets(self, label: str) -> PromptSet | None:
        try:
            return prompts.load(label, lens=self.lens) if label in prompts.concepts(None) else None
        except InputError:
            return None


def _plain_place(calibration: Calibration) -> dict[str, Any] | None:
    """Return the strategy and layer of a calibration, or `None` if its place has further properties, such as a band."""
    stated = {name: value for name, value in calibration.place.items() if value != PLACE[name]}
    if not {"strategy", "layer"} >= set(stated):
        return None
    return {"strategy": PLACE["strategy"], **stated}
