"""The commands train-sae and features, on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from command_line import Run

from analysis import features, harvest
from analysis.commands import early
from analysis.distributed.settings import Ray
from analysis.features.learning import Learner


def test_train_sae_stops_and_resumes_and_features_writes_a_page(
    run: Run, checkpoint: Path, lens: Any, monkeypatch: Any
) -> None:
    lens.generate(["fast piano", "slow drums", "calm song"], 0.4, seeds=[0, 1, 2]).save("clips")
    small = ("--layer", 1, "--width", 16, "--k", 2, "--vectors", 90, "--batch-size", 10, "--held-out", 0.3)
    words = ("train-sae", "clips", "-m", checkpoint, "-o", "sae", *small, "--json")
    learn = Learner.learn

    def stopped(self: Learner, vectors: Any) -> Any:
        if self.step == 4:
            raise KeyboardInterrupt
        return learn(self, vectors)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", stopped)
        code, _, err = run(*words)
    assert code == 130
    assert err.endswith("the last checkpoint is kept in sae. Run the same command again to resume.\n")
    code, out, err = run(*words)
    assert code == 0, err
    found = json.loads(out)
    assert (found["width"], found["site"], found["l0"] <= 2) == (16, "blocks.1.hook_resid_post", True)
    code, out, err = run("features", "sae", "-m", checkpoint, "--clips", "clips", "--latents", "3", "-o", "page")
    assert code == 0, err
    assert 'id="latent-3"' in Path("page/index.html").read_text("utf-8")
    assert len(Path("page/latents.csv").read_text("utf-8").splitlines()) == 17
    code, _, err = run("features", "sae", "-m", checkpoint, "--clips", "clips", "--latents", "99")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "expected different latents between 0 and 15" in err


def test_the_current_folder_can_be_the_output(run: Run) -> None:
    # Nothing is generated, because no cluster has this address.
    code, _, err = run("train-sae", "tempo", "--layer", 1, "-o", ".", "--ray", "here")
    assert (code, err.count("\n")) == (2, 1)
    assert "ray='here': expected 'auto'" in err


def test_with_ray_the_activations_are_harvested_first(run: Run, checkpoint: Path, lens: Any, monkeypatch: Any) -> None:
    cluster, asked, recorded = Ray(workers=2), [], harvest.harvest

    def here(*given: Any, ray: Any, **named: Any) -> Any:
        asked.append(ray)
        return recorded(*given, **named)

    Path("songs.txt").write_text("fast piano\nslow drums\ncalm song\n")
    small = ("--width", 16, "--k", 2, "--vectors", 90, "--batch-size", 10, "--held-out", 0.3, "-m", checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(early, "checked_ray", lambda *_: cluster)
        patch.setattr(harvest, "harvest", here)
        first = run("train-sae", "songs.txt", "--layer", 1, "--seconds", 0.4, "-o", "sae", "--ray", "auto", *small)
        again = run("train-sae", "sae-activations", "-o", "own", "--ray", "auto", *small)
    assert first[0] == 0, first[2]
    assert asked == [cluster]
    assert harvest.Harvest.load("sae-activations").sites == ("blocks.1.hook_resid_post",)
    assert (again[0], again[2].count("\n")) == (2, 1)
    assert "sae-activations already contains the activations" in again[2]
    code, _, err = run("train-sae", "sae-activations", "-o", "own", *small)
    assert code == 0, err
    one, other = (features.load(folder, lens=lens) for folder in ("sae", "own"))
    torch.testing.assert_close(one.W_dec, other.W_dec, rtol=0, atol=0)
