"""What the playground makes and refuses, without a browser: clips that can be made again, the line, the sliders."""

import io
import json
import shlex
import socket
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import Run
from safetensors.torch import load_file

import audiolens as al
from analysis.playground.line import Cancelled, Line
from analysis.playground.recipe import Part, Recipe
from analysis.playground.shelf import Shelf
from analysis.playground.studio import Clip, Studio, _why
from analysis.playground.wish import Wish
from audiolens.directions.calibration import Calibration
from audiolens.errors import DamagedError, InputError
from audiolens.files.integrity import sealed_json

PROMPT = "--calm 'song' $(touch it)\"; <b>"
SLIDER = {"concept": "given-0", "share": 0.5}


@pytest.fixture
def studio(lens: Any, checkpoint: Path, file: Path, tmp_path: Path) -> Studio:
    """A studio whose shelf has two files of directions: one as it was read, and one that is calibrated at a place."""
    read = al.Directions.load(file)
    calibration = Calibration(
        measure="brightness", measured_in="Hz", strengths=(-30.0, 0.0, 30.0), values=(900.0, 1500.0, 2000.0),
        low=(None,) * 3, high=(None,) * 3, failed=(0.0,) * 3, place={"strategy": "one-to-all", "layer": 1}, clips=4,
        seconds=5.0, guidance_scale=3.0,
    )  # fmt: skip
    known = replace(read, calibration=calibration)
    paths = [read.save(tmp_path / "a.safetensors"), known.save(tmp_path / "b $(x).safetensors")]
    opened = {"name": str(checkpoint), "device": "cpu", "dtype": "float32", "revision": None}
    return Studio(lens, Shelf(lens, paths), opened)


def wished(*pushes: Any, **other: Any) -> Any:
    return {"prompt": PROMPT, "seed": 3, "seconds": 1.0, "guidance": 3.0, "pushes": list(pushes), **other}


def test_command_and_code_make_the_same_codes_again(
    studio: Studio, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"concept": "given-0", "share": -0.8, "strategy": "one-to-one", "layer": 2, "curve": [[0, 0], [0.7, 1]]}
    clips: dict[str, Clip] = {}
    told: list[Any] = []
    for second in ({"concept": "given-1", "share": 0.6}, {"concept": "given-1", "value": 1100.0}):
        studio.make(Wish.of(wished(first, second), 4.0), clips, told.append, threading.Event())
        steered, plain = clips["steered"], clips["unsteered"]
        assert not torch.equal(steered.made.codes, plain.made.codes)
        monkeypatch.chdir(tmp_path)
        with zipfile.ZipFile(io.BytesIO(steered.recipe.zipped(steered.wav))) as archive:
            archive.extractall(tmp_path / "zip")
        monkeypatch.chdir(tmp_path / "zip")
        exec((tmp_path / "zip" / "again.py").read_text("utf-8"), {})
        monkeypatch.chdir(tmp_path / "zip")
        words = shlex.split((tmp_path / "zip" / "again.txt").read_text("utf-8"))
        words[words.index("again")] = "typed"
        monkeypatch.setattr("sys.argv", words)
        from analysis import cli

        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        for folder in ("again", "typed"):
            assert torch.equal(load_file(folder + "/codes.safetensors")["codes"], steered.made.codes), folder
        again = next(Path("again").glob("*.wav")).read_bytes()
        assert again == steered.wav == Path("clip.wav").read_bytes()
        monkeypatch.chdir(tmp_path)
        (tmp_path / "zip").rename(tmp_path / f"done-{'value' in second}")
    kinds = [event["event"] for event in told if event["event"] not in ("step", "note")]
    once = ["clip", "measured", "clip", "measured", "compared", "clip", "measured"]
    assert kinds == [*once, *once]
    assert not list(tmp_path.rglob("it"))


def test_a_clip_stops_a_step_after_nobody_waits(studio: Studio) -> None:
    stop, steps = threading.Event(), []

    def tell(event: Any) -> None:
        steps.append(event["event"])
        stop.set()

    with pytest.raises(Cancelled):
        studio.make(Wish.of(wished(SLIDER), 4.0), {}, tell, stop)
    # What audiolens warns of, such as unknown words, is told in any case.
    assert [step for step in steps if step != "note"] == ["step"]


def test_a_visitor_has_one_place_in_the_line_and_others_wait_in_turn() -> None:
    line, made, told = Line(), [], []
    begun, go = threading.Event(), threading.Event()

    def work(name: str) -> Any:
        def made_by(tell: Any, stop: threading.Event) -> None:
            begun.set()
            go.wait(20)
            if stop.is_set():
                raise Cancelled("nobody waits")
            made.append(name)

        return made_by

    def hear(name: str) -> Any:
        return lambda event: told.append((name, event["event"], event.get("ahead")))

    line.ask("ann", work("first"), hear("first"))
    assert begun.wait(20)
    line.ask("bob", work("second"), hear("second"))
    line.ask("ann", work("third"), hear("third"))
    left = line.ask("eve", work("fourth"), hear("fourth"))
    line.leave(left)
    failed = threading.Event()
    line.ask("dan", lambda _, __: 1 / 0, lambda event: failed.set() if event["event"] == "error" else None)
    last = threading.Event()
    line.ask("flo", work("last"), lambda event: last.set() if event["event"] == "done" else None)
    go.set()
    assert failed.wait(20)
    assert last.wait(20)
    line.close()
    assert made == ["second", "third", "last"]
    assert ("second", "waiting", 1) in told
    # Behind bob, and not behind herself.
    assert ("third", "waiting", 1) in told
    assert [event for name, event, _ in told if name == "first"][-2:] == ["replaced", "cancelled"]
    assert ("fourth", "done", None) not in told


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "expected an object"),
        ({}, "lacks 'prompt'"),
        (wished(prompt="  "), "prompt is empty"),
        (wished(prompt="x" * 501), "at most 500"),
        (wished(prompt="a\x00song"), "not allowed in text"),
        (wished(prompt=3), "expected text"),
        (wished(seed=2**32), "seed"),
        (wished(seconds=5), "at most 4 seconds"),
        (wished(guidance=0.5), "expected 1"),
        (wished(SLIDER, SLIDER), "given twice"),
        (wished({"concept": "a", "share": 2}), "expected -1 to 1"),
        (wished({"concept": "a"}), "either a share"),
        (wished({**SLIDER, "strategy": "one-to-band", "layer": 1}), "expected one-to-one"),
        (wished({**SLIDER, "strategy": "one-to-one"}), "give a block"),
        (wished({**SLIDER, "curve": [[0, 3]]}), "factors of a curve"),
        (wished({**SLIDER, "curve": [[0, 1]] * 200}), "at most 129"),
        (wished(*({"concept": str(n), "share": 1} for n in range(20))), "at most 12"),
    ],
)  # fmt: skip
def test_a_wish_out_of_limits_is_refused(asked: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Wish.of(asked, 4.0)


def test_the_shelf_refuses_what_is_no_direction_of_this_model(
    lens: Any, stereo_lens: Any, file: Path, tmp_path: Path
) -> None:
    shelf, content = Shelf(lens), file.read_bytes()
    other = al.Directions.load(file)
    foreign = al.difference_in_means(
        stereo_lens, ["fast song"], ["slow song"], seconds=0.5, label="tempo", progress=False
    ).save(tmp_path / "foreign.safetensors")
    flipped = bytearray(content)
    flipped[-3] ^= 1
    choice = {"strategy": "one-to-all", "layer": 1, "strength": 0.4}
    facts = {"format": "audiolens.study.2", "concept": "tempo<b>", "poles": ["fast", "slow"], "choice": choice}
    for sent, summary, said in (
        (b"no directions", None, "evil.*not a complete safetensors file"),
        (bytes(flipped), None, "evil.*damaged"),
        (content[:-40], None, "evil"),
        (foreign.read_bytes(), None, r"evil.*these directions were read from .* different weights"),
        (bytes(17 * 2**20), None, "larger than 16 MB"),
        (content, b"{}", "damaged"),
        (content, sealed_json({**facts, "format": "else"}), "expected audiolens.study.2"),
        (content, sealed_json({**facts, "choice": {**choice, "layer": "1"}}), "choice.layer"),
        (content, sealed_json({**facts, "choice": {**choice, "strategy": "rm"}}), "strategy='rm'"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            shelf.add("../../evil\x1b.safetensors", sent, summary)
        # The visitor does not know the path of the file here.
        assert "/directions.safetensors" not in str(refused.value)
        assert "\x1b" not in str(refused.value)
    added = shelf.add("study", content, sealed_json(facts))
    assert (added.name, added.ready.place) == ("tempo<b> (study)", {"strategy": "one-to-all", "layer": 1})
    # A study of one's own prompts is not asked for in the words of the bundled ones.
    for poles, known in ((["fast", "slow"], True), (["slow", "fast"], False), (["f" * 99, "s\u202e"], False)):
        summary = sealed_json({**facts, "concept": "tempo", "poles": poles})
        entry = shelf.add("x\x1b" * 99, content, summary)
        assert (entry.sets is not None) is known
        assert max(map(len, (entry.name, *entry.poles))) <= 80
        assert not {"\x1b", "\u202e"} & {*entry.name, *entry.poles[1]}
    assert added.facts()["reach"] == pytest.approx(0.6)
    assert torch.equal(added.ready.directions.vectors, other.vectors)
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "directions.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"no summary.json: expected the folder of a finished study"):
        Shelf(lens, [folder])
    (folder / "summary.json").write_bytes(sealed_json(facts).replace(b"slow", b"slew"))
    with pytest.raises(DamagedError, match="Make the study again"):
        Shelf(lens, [folder])


def test_files_of_one_name_are_sliders_of_their_own(lens: Any, file: Path, tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(al.Directions.load(file).save(tmp_path / folder / "tempo.safetensors"))
    shelf = Shelf(lens, paths)
    assert [key for key in shelf.open if key.startswith("given")] == ["given-0", "given-1"]
    assert shelf.get("given-1").key == "given-1"
    # Nobody knows where these directions should be added, and the page says so.
    assert "block 1, the middle one" in shelf.get("given-0").facts()["note"]


def test_no_two_directions_of_a_zip_have_one_name(file: Path) -> None:
    directions = al.Directions.load(file)
    names = ("tempo", "tempo-2", "Tempo!", "../../tempo", "<b>", "\u202e")
    parts = [Part(name, directions, 0.5, {"strategy": "one-to-all", "layer": 1}, ()) for name in names]
    recipe = Recipe({"name": "etude", "device": None, "device_map": "auto"}, "a", 0, 1.0, 3.0, "fast", parts)
    assert recipe.files[:4] == [f"tempo{end}.safetensors" for end in ("", "-2", "-3", "-4")]
    with zipfile.ZipFile(io.BytesIO(recipe.zipped(b"RIFF"))) as archive:
        assert len({*archive.namelist()}) == len(archive.namelist()) == len(names) + 3
        assert all("/" not in name for name in archive.namelist())
    words = shlex.split(recipe.command)
    assert words[words.index("--device-map") + 1] == "auto"
    assert "--device" not in words
    assert "device_map='auto'" in recipe.python


def test_a_curve_that_goes_both_ways_is_not_asked_for_in_words(studio: Studio) -> None:
    told: list[Any] = []
    curve = [[0.0, 0.5], [1.0, -0.5]]
    studio.make(Wish.of(wished({**SLIDER, "curve": curve}), 4.0), {}, told.append, threading.Event())
    kinds = [event["event"] for event in told if event["event"] not in ("step", "note")]
    assert kinds == ["clip", "measured", "clip", "measured", "compared", "no words"]


def test_nobody_who_left_has_directions_read(lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOLENS_CACHE", str(tmp_path))
    opened = {"name": "x", "device": "cpu", "dtype": "float32", "revision": None}
    studio, stop = Studio(lens, Shelf(lens), opened), threading.Event()
    monkeypatch.setattr(studio.shelf, "read", lambda _: pytest.fail("they were read"))

    def tell(event: Any) -> None:
        if event["event"] == "clip":
            stop.set()

    with pytest.raises(Cancelled):
        studio.make(Wish.of(wished({"concept": "tempo", "share": 0.5}), 4.0), {}, tell, stop)


@pytest.mark.parametrize(
    ("row", "own", "said"),
    [
        ({"onsets": 1}, 9, ["it has 1 onset"]),
        ({"onsets": 0}, 2, ["it has 0 onsets (without steering 2: this length may be too short to tell)"]),
        ({"rms_ratio": 0.01}, None, ["its level is 0.01 times that of the clip without steering"]),
        ({"rms_ratio": float("nan")}, None, ["the clip without steering is silent"]),
        ({"entropy_ratio": 0.2}, None, ["it repeats itself"]),
    ],
)
def test_why_a_clip_failed_is_said(row: dict[str, float], own: int | None, said: list[str]) -> None:
    assert _why(SimpleNamespace(**{"rms_ratio": 1.0, "onsets": 9, "entropy_ratio": 1.0, **row}), own) == said


def test_directions_are_read_once_and_kept(lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOLENS_CACHE", str(tmp_path))
    from analysis.playground import ready

    monkeypatch.setattr(ready, "PROMPTS", 4)
    monkeypatch.setattr(ready, "NEUTRAL", 2)
    assert Shelf(lens).get("tempo").ready is None
    made = Shelf(lens).read("tempo").ready
    again = Shelf(lens).get("tempo").ready
    assert torch.equal(made.directions.vectors, again.directions.vectors)
    assert (made.place, made.strength, made.note) == (again.place, again.strength, again.note)
    kept = next(tmp_path.rglob("tempo.json"))
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "strength": 99}))
    assert Shelf(lens).get("tempo").ready is None, "a changed file is read again"


def test_a_port_in_use_is_one_line_before_a_model_opens(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run("play", "--port", port)
    assert code == 2
    assert err.count("\n") == 1
    assert f"port {port} of 127.0.0.1 is in use" in err
