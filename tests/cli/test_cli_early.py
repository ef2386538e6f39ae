"""Arguments that can be checked without a model are refused before torch and transformers are imported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
import soundfile

from analysis.commands import common, early
from analysis.features import described
from analysis.features.learning import Kind
from analysis.harvest.planned import Reduced
from analysis.patching.grid import By, Mode, checked_by, checked_mode
from analysis.placement.other_evidence import Computable
from analysis.placement.rules import ALIGNMENT, RULES
from analysis.placement.shifts import PLACED
from analysis.probing.features import FeaturePosition
from analysis.probing.probes import KINDS
from analysis.study import settings
from analysis.sweep.storage import SoundFormat
from audiolens.directions.estimators import Method
from audiolens.directions.pole_reader import CodesSource, Position
from audiolens.directions.steering import Strategy
from audiolens.errors import InputError
from audiolens.interventions import Branch
from audiolens.model import devices

HEAVY = ("torch", "transformers", "nnsight")
OPENING = ("study tempo", "sweep tempo -o out", "place tempo", "probe tempo", "patch tempo", "directions tempo",
           "generate song", "harvest tempo -o out", "train-sae tempo --layer 1 -o out", "features a/b",
           "play")  # fmt: skip
UNAVAILABLE = (
    "--device gpu", "--device cuda:x", f"--device {'cuda' if sys.platform == 'darwin' else 'mps'}", "--dtype int8",
    "--attention flash", "--attention flash_attention_2", "--device-map some", "--device cpu --device-map auto",
    "--revision main",
)  # fmt: skip
"""Options that are unknown, or for which a device or a package is missing here."""
REFUSED = (
    "study tempi", "study tempo --model nowhere", "study tempo --full --quick", "study bells",
    "study tempo --measure loudness", "study tempo --measure brightnes", "study tempo --words a,b",
    "study one.csv --measure pitch", "study none.csv", "study --concepts tempo,tempi", "study tempo --codes both",
    "study tempo --seconds -1", "study tempo --out full", "study tempo --others some",
    "study tempo --jobs -1", "study tempo --jobs 9999999", "study tempo --engine quick",
    "sweep tempi -o out", "sweep tempo -o out --strengths much", "sweep tempo -o out --model nowhere",
    "sweep tempo -o out --strategy some", "sweep tempo -o out --strategy heads",
    "sweep tempo -o out --heads 2", "sweep tempo -o out --strategy heads --heads 2 --layers 3",
    "sweep tempo -o out --strategy all-to-all --layers 3", "sweep tempo -o out --strategy heads --heads 0",
    "sweep tempo -o out --strategy heads,one-to-one --heads 2", "generate song -s full/file:1 --strategy heads",
    "sweep tempo -o out --branch some", "sweep tempo -o out --measure some",
    "sweep tempo -o out --sound mp3", "sweep tempo -o full", "sweep tempo -o full/file", "sweep tempo -o out --seeds 0",
    "sweep tempo -o out --controls -1", "sweep tempo -o out --split train", "sweep tempo -o out --layers some",
    "sweep none.csv -o out", "sweep tempo -o out --jobs -1", "sweep tempo -o out --jobs 9999999",
    "sweep tempo -o out --jobs many", "sweep tempo -o out --engine quick", "sweep tempo -o out --guidance 0.5",
    "sweep tempo -o out --seconds nan",
    "place tempi", "place tempo --strategies one-to-some", "place tempo --by ear", "place tempo --codes both",
    "place tempo --confirm -1", "place tempo --confirm 8 --by middle", "place tempo --measure pitch",
    "place tempo --confirm 8 --measure some", "place bells --confirm 8", "place tempo --model nowhere",
    "place tempo --directions none.safetensors", "place tempo -o full",
    "probe tempi", "probe tempo --layers a", "probe tempo --probe svm", "probe mode --quantity", "probe tempo -o full",
    "probe tempo --audio full", "probe tempo --group artist", "probe tempo --model nowhere", "probe tempo --seed -1",
    "patch tempi", "patch tempo --by ear", "patch tempo --mode both", "patch tempo --pairs 1", "patch tempo -o full",
    "patch tempo --sound loud", "patch tempo --sound tempo --no-sound", "patch tempo --model nowhere",
    "directions tempi", "directions tempo --branch some", "directions tempo --position end", "directions none.csv",
    "directions tempo --codes both", "directions tempo --method some", "directions tempo --measure tempo",
    "directions tempo --method by_measure --measure some", "directions mode --method by_measure",
    "directions tempo --method gradient --codes shared", "directions tempo --model nowhere",
    "directions tempo -o full/file",
    "generate song --strategy one-to-one", "generate song --steer none:1", "generate song --seconds 0",
    "generate song --guidance 0", "generate song --seed -1", "generate song -o full", "generate song --model nowhere",
    "generate song --engine quick", "generate song --overlap 1", "generate song --window 0",
    "generate song --window 2 --overlap 2", "generate song --to tempo=120", "generate song --to tempo",
    "generate song --steer full/file --to tempi=3", "generate song --steer full/file --to tempo=900",
    "generate song --steer full/file --to tempo=2kHz", "generate song --steer full/file --to tempo=120 --orthogonal",
    "generate song --steer full/file --to tempo=120 --max-clips 0", "generate song --steer none --to tempo=120",
    "generate song --steer full/file --to tempo=120 --limits 1,2", "generate song --limits=-1,2",
    "directions calibrate none --measure tempo", "directions calibrate full/file --measure tempo --strategy heads",
    "directions calibrate full/file --measure tempo --strategy heads --heads 2",
    "directions calibrate full/file --measure tempi", "directions calibrate full/file --measure tempo --strategy some",
    "directions calibrate full/file --measure tempo --strengths some",
    "directions calibrate full/file --measure tempo -o full/file",
    "harvest tempi -o out", "harvest none.txt -o out", "harvest full -o out", "harvest tempo -o full",
    "harvest tempo -o out --layers a", "harvest tempo -o out --reduce sum", "harvest tempo -o out --branch both",
    "harvest tempo -o out --store int8", "harvest tempo -o out --span 3-1", "harvest tempo -o out --seeds 0",
    "harvest tempo -o out --seconds 0", "harvest tempo -o out --model nowhere", "harvest tempo -o out --engine auto",
    "train-sae tempo -o out", "train-sae tempi --layer 1 -o out", "train-sae none.txt --layer 1 -o out",
    "train-sae tempo --layer 1 -o full", "train-sae tempo --layer 1 -o out --kind relu",
    "train-sae tempo --layer 1 -o out --k 0", "train-sae tempo --layer 1 -o out --width 8 --k 5",
    "train-sae tempo --layer 1 -o out --held-out 1", "train-sae full --layer 1 -o out",
    "train-sae tempo --layer 1 -o out --model nowhere", "train-sae tempo --layer 12 -o out",
    "features full", "features nowhere", "features a/b --latents x", "features a/b --clips full",
    "features a/b --threshold 2", "features a/b -o full", "features a/b --model nowhere", "features a/b --n 3",
    "study tempo --seed 100", "study tempo --seconds 0.5", "study tempo --batch-size 0",
    "sweep -o out", "sweep -o out --config none.toml", "sweep -o out --config one.csv", "sweep -o out --config s.toml",
    "sweep tempo -o out --set seed=3", "sweep tempo -o out --set seeds", "sweep tempo -o out --set seeds=x",
    "sweep tempo -o out --log comet:x", "sweep tempo -o out --log mlflow", "study tempo --log wandb:",
    "study --config none.toml", "study tempo --set seed", "study tempo --figures jpg",
    "sweep tempo -o out --prompts 99", "sweep tempo -o out --batch-size some", "sweep tempo -o out --layers 0-8",
    "sweep tempo -o out --poles 0", "sweep tempo -o out --strategy one-to-band --band 3-2",
    "sweep d.safetensors -o out --shuffled 1",
    "place tempo --prompts 41", "place tempo --screen nan", "place tempo --seed -1",
    "probe tempo --layers 12", "probe tempo --heads 6", "probe tempo --position end", "probe tempo --folds 1",
    "probe tempo --shuffles 0", "probe tempo --n 1", "probe tempo --position 0-2 --seconds 1",
    "probe tempo --audio none --labels one.csv", "probe tempo --audio full --labels none.csv", "patch three.csv",
    "harvest tempo -o out --layers 12",
    "prompts list --vocabulary french", "prompts build none.csv --words a,b -o a.toml",
    "prompts build one.csv --words fast -o a.toml", "prompts build one.csv --words loud,soft --column fast -o a.toml",
    *(f"generate song {options}" for options in UNAVAILABLE), *(f"{command} --device gpu" for command in OPENING),
    "listen-test", "listen-test full", "listen-test full -o out", "listen-test none -o out",
    "listen-test full --read full", "listen-test --read full", "listen-test --read none", "listen-test full -o full",
    "listen-test full -o out --pairs 0", "listen-test full -o out --ask loudness",
    "listen-test full -o out --checks -1",
    "listen-test full -o out --mode mushra --anchor-hz 0", "listen-test full -o out --mode abx",
    "listen-test --read full --model x", "listen-test --read full --mode pairs",
    "listen-test full -o out --mode mushra --checks 3", "listen-test full -o out --most-failed 0",
    "listen-test full -o out --consent none.txt", "listen-test --read full --most-failed -1",
    "generate song --curve 0:1", "generate song --steer full/file:1@x",
    "generate song --steer full/file:1@3/all-to-all",
    "generate song --steer full/file:1 --curve 1:0,0:1", "generate song --steer full/file:1 --curve some",
    "generate song --steer full/file:1 --curve 0:1 --curve 0:2 --curve 0:3", "generate song --steer full/file:9BPM@3",
    "play none.safetensors", "play --port 70000", "play --longest 0", "play --longest 1000", "play --model nowhere",
    "play --host 203.0.113.7",
    "measure none.wav", "measure full", "measure a.wav --measures some", "measure a.wav --seconds 5:1",
    "measure a.wav --jobs 0", "report full", "report full --figures jpg", "report nowhere", "report begun",
    "report full --index", "report nowhere --index", "report full --index --figures pdf",
)  # fmt: skip
_CODE = """
import json, sys
from analysis import cli

found = {}
for line in json.loads(sys.argv[1]):
    sys.argv = ["audiolens", *line.split()]
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code
    found[line] = [code, [name for name in HEAVY if name in sys.modules]]
print(json.dumps(found))
""".replace("HEAVY", repr(HEAVY))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("years of work")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "study.json").write_text("{}")
    (tmp_path / "s.toml").write_text("concepts = ['tempo']\n[settings]\nseeds = 'many'\n")
    (tmp_path / "one.csv").write_text("fast,slow\na fast song,a slow song\n")
    (tmp_path / "three.csv").write_text("fast,slow\na fast song,a slow song\nfast drums,\n")
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(32_000) / 8), 16_000)
    return tmp_path


def loaded(lines: tuple[str, ...], place: Path) -> dict[str, list]:
    done = subprocess.run(
        [sys.executable, "-c", _CODE, json.dumps(lines)], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_refused_arguments_load_neither_torch_nor_transformers(place: Path) -> None:
    before = sorted(place.rglob("*"))
    found = loaded(REFUSED, place)
    assert {line: code for line, (code, _) in found.items() if code != 2} == {}
    # Commands run one after another in one process, so the first that loads a package is named.
    assert next((line for line, (_, heavy) in found.items() if heavy), None) is None
    assert sorted(place.rglob("*")) == before


def test_models_and_measure_load_neither_torch_nor_transformers(place: Path) -> None:
    found = loaded(("models", "models --json", "measure a.wav", "measure a.wav --seconds 0:1 --json"), place)
    assert set(map(str, found.values())) == {"[0, []]"}


def test_early_choices_are_those_of_the_functions() -> None:
    """The names in `early` are repeated, because the modules that define them import torch."""
    assert get_args(Strategy) == early.STRATEGIES
    assert get_args(Branch) == early.BRANCHES
    assert get_args(CodesSource) == early.CODES
    assert get_args(Method) == early.METHODS
    assert get_args(get_args(Position)[0]) == early.POSITIONS
    assert early.PROBES == KINDS
    assert PLACED == early.PLACED
    assert {*RULES, "norm", *get_args(Computable)} == set(early.EVIDENCE)
    assert early.EVIDENCE[0] == ALIGNMENT
    assert get_args(SoundFormat) == early.SOUND_FORMATS
    assert get_args(Reduced) == early.REDUCED
    assert get_args(Kind) == described.KINDS
    assert get_args(get_args(FeaturePosition)[0]) == early.PROBED_POSITIONS
    assert settings.REPETITIONS == early.REPETITIONS
    early.check_study(settings.LEAST_SECONDS, 0)
    assert get_args(get_args(common.Attention)[0])[:-1] == (Literal[devices.ATTENTIONS],)
    for check, kinds in ((checked_by, By), (checked_mode, Mode)):
        for kind in get_args(kinds):
            check(kind)
        with pytest.raises(InputError, match="expected"):
            check("other")
