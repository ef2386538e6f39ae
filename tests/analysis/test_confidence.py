"""One constant sets the coverage of every interval, and every text that states it follows."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import analysis
from analysis import resampling, statistics

HOME = Path(analysis.__file__).parent
EDITED = """
import importlib.util, json, sys
from pathlib import Path

spec = importlib.util.find_spec("analysis.resampling")
source = Path(spec.origin).read_text("utf-8")
assert source.count("CONFIDENCE = 0.95") == 1
edited = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
exec(compile(source.replace("CONFIDENCE = 0.95", "CONFIDENCE = 0.8"), spec.origin, "exec"), edited.__dict__)

import numpy as np
from analysis import layer_attribution, probing, statistics
from analysis.probing import figures
from analysis.report import crossing

steered, baseline, prompts = json.load(sys.stdin)
effect = statistics.effect(steered, baseline, prompts).interval
grid = statistics.means(steered, prompts)
area = statistics.auc(steered, np.array(steered) > np.median(steered), prompts).interval
values = np.random.default_rng(0).normal(size=(2, 20, 3))
probe = probing.probe(None, values, ["a", "b"] * 10, groups=np.arange(20) // 2, n_shuffles=2, n_bootstrap=20)
caption = figures.caption(probe)
evidence = layer_attribution.gather(probe=probe).plot().get_supxlabel()
print(json.dumps({
    "effect": [effect.low, effect.high], "means": [float(grid.low), float(grid.high)],
    "levels": [effect.confidence, grid.confidence, area.confidence, probe.scored[0].interval.confidence],
    "captions": [" ".join(text.split()) for text in (caption, evidence, crossing.CAPTION)],
}))
"""


def test_changing_the_constant_changes_intervals_and_captions() -> None:
    rng = np.random.default_rng(0)
    prompts = [str(row // 4) for row in range(48)]
    baseline = rng.uniform(90, 110, 48)
    steered = baseline * rng.uniform(1.0, 1.5, 48)
    given = json.dumps([steered.tolist(), baseline.tolist(), prompts])
    done = subprocess.run([sys.executable, "-c", EDITED], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    asked = statistics.effect(steered, baseline, prompts, confidence=0.8).interval
    default = statistics.effect(steered, baseline, prompts).interval
    assert found["effect"] == pytest.approx([asked.low, asked.high], rel=1e-12)
    assert default.low < asked.low < asked.high < default.high
    grid = statistics.means(steered, prompts, confidence=0.8)
    assert found["means"] == pytest.approx([float(grid.low), float(grid.high)], rel=1e-12)
    assert found["levels"] == [0.8] * 4
    assert all("80%" in text and "95%" not in text for text in found["captions"]), found["captions"]


def test_no_other_code_states_the_coverage() -> None:
    """Docstrings may mention 95%. Strings, numbers and templates that end up in results may not."""
    assert resampling.COVERAGE == "95%"
    for path in HOME.rglob("*.j2"):
        assert "95%" not in path.read_text("utf-8"), path
    found = []
    for path in HOME.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or id(node) in prose:
                continue
            stated = "95%" in node.value if isinstance(node.value, str) else node.value in (0.95, 0.025, 0.975)
            if stated:
                found.append((path.relative_to(HOME).as_posix(), node.value))
    # `lags` reports a quantile of shuffled scores, and an attribute's own latent has an AUC: neither is an interval.
    others = [("attention/lags.py", 0.95), ("features/described.py", 0.95)]
    assert sorted(found) == [*others, ("resampling.py", 0.95)]
