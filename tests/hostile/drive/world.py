"""The objects that valid calls need: tiny models, and results read or generated with them, each made once."""

import atexit
import shutil
import tempfile
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from conftest import write_model
from plants import listening as listeners
from plants import tables as planted
from plants.sweeps import swept as planted_sweep

import audiolens as al
from analysis import (
    attention,
    attribution,
    features,
    harvest,
    layer_attribution,
    listening_test,
    logit_lens,
    methods,
    patching,
    pca,
    placement,
    probing,
    reading_comparison,
    similarity,
    statistics,
    study,
    sweep,
)

QUICK: dict[str, Any] = {"n_shuffles": 2, "n_bootstrap": 0}
PROMPTS = ["fast piano", "slow guitar", "fast drums", "slow song"]
RATE = 16_000


class World:
    """Objects by name; each property is computed on first use."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="drive"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        self.places = 0

    def place(self, *, made: bool = False) -> Path:
        """The path of an empty folder, or of nothing."""
        self.places += 1
        place = self.folder / f"out{self.places}"
        if made:
            place.mkdir()
        return place

    @cached_property
    def checkpoint(self) -> Path:
        return write_model(self.folder / "mono")

    @cached_property
    def lens(self) -> Any:
        return al.AudioLens.from_pretrained(self.checkpoint)

    @cached_property
    def melody(self) -> Any:
        return al.AudioLens.from_pretrained(write_model(self.folder / "melody", melody=True))

    @cached_property
    def stereo(self) -> Any:
        return al.AudioLens.from_pretrained(write_model(self.folder / "stereo", channels=2))

    @cached_property
    def codes(self) -> torch.Tensor:
        return torch.randint(0, 32, (4, 4, 12), generator=torch.Generator().manual_seed(0))

    @cached_property
    def clips(self) -> Any:
        return self.lens.generate(PROMPTS, 0.5, seeds=[0, 1, 2, 3], sites="resid_post")

    @cached_property
    def cache(self) -> Any:
        sites = ["resid_pre", "resid_post", "attn_out", "cross_attn_out", "mlp_out", "attn.z", "attn.pattern"]
        return self.lens.run_with_cache(PROMPTS, self.codes, sites=sites)[1]

    @cached_property
    def means(self) -> Any:
        return self.lens.run_with_cache(PROMPTS, self.codes, reduce="mean")[1]

    def read(self, lens: Any, **options: Any) -> Any:
        return al.difference_in_means(
            lens, PROMPTS[::2], PROMPTS[1::2], seconds=0.3, label="tempo", progress=False, **options
        )

    @cached_property
    def directions(self) -> Any:
        return self.read(self.lens, keep_samples=True)

    @cached_property
    def erasing(self) -> Any:
        return al.estimate(samples=self.directions.samples, method="leace")

    @cached_property
    def others(self) -> Any:
        """Directions of another model with the same width."""
        return self.read(self.melody)

    @cached_property
    def sets(self) -> Any:
        words = {"positive_words": ("fast",), "negative_words": ("slow",), "nouns": ("piano", "song")}
        fast = ("fast piano", "a fast song", "fast guitar", "fast drums")
        slow = tuple(text.replace("fast", "slow") for text in fast)
        return al.prompts.PromptSet("tempo", ("fast", "slow"), fast, slow, ("piano", "guitar"), ("song",), **words)

    @cached_property
    def neutral(self) -> Any:
        return al.prompts.load("tempo")

    @cached_property
    def audio(self) -> np.ndarray:
        seconds = np.arange(RATE // 2) / RATE
        rows = [np.sin(2 * np.pi * hz * seconds) * np.exp(-8 * (seconds % 0.25)) for hz in (220, 440)]
        return np.stack(rows)[:, None].astype(np.float32)

    @cached_property
    def sound(self) -> Path:
        place = self.folder / "sound.wav"
        soundfile.write(place, self.audio[0, 0], RATE)
        return place

    @cached_property
    def sounds(self) -> Path:
        """A folder of labelled clips."""
        place = self.folder / "sounds"
        place.mkdir()
        for row, audio in enumerate(np.tile(self.audio[:, 0], (4, 1))):
            soundfile.write(place / f"{row}.wav", audio, RATE)
        labels = [{"file": f"{row}.wav", "label": "ab"[row % 2], "text": "piano"} for row in range(8)]
        pd.DataFrame(labels).to_csv(place / "labels.csv", index=False)
        return place

    @cached_property
    def clap(self) -> Path:
        from clap_models import write_clap

        return write_clap(self.folder / "clap", fusion=False)

    @cached_property
    def features(self) -> Any:
        return al.measure.codec_features(self.lens, self.clips, window_seconds=None)

    @cached_property
    def drift(self) -> Any:
        return al.measure.drift(self.lens, self.clips, self.clips)

    @cached_property
    def prompt_file(self) -> Path:
        place = self.folder / "prompts.csv"
        rows = [self.sets.poles, *zip(self.sets.positive, self.sets.negative, strict=True)]
        place.write_text("\n".join(",".join(row) for row in rows))
        return place

    def lines(self, name: str) -> Path:
        place = self.folder / f"{name}.txt"
        place.write_text("\n".join(getattr(self.sets, name)))
        return place

    @cached_property
    def words(self) -> Any:
        return attention.to_text(self.lens, PROMPTS, self.codes)

    @cached_property
    def lags(self) -> Any:
        return attention.by_lag(self.lens, PROMPTS, self.codes, beat_seconds=[0.12, 0.16, 0.2, 0.12], n_permutations=9)

    @cached_property
    def harvesting(self) -> dict[str, Any]:
        return {"lens": self.lens, "prompts": PROMPTS[:2], "layers": [1], "seconds": 0.2, "progress": False}

    @cached_property
    def harvested(self) -> Any:
        return harvest.harvest(**self.harvesting, out=self.place())

    @cached_property
    def training(self) -> dict[str, Any]:
        return {
            "lens": self.lens, "data": PROMPTS, "codes": self.codes, "layer": 1, "width": 24, "k": 2, "n_vectors": 60,
            "batch_size": 20, "held_out": 0.25, "progress": False,
        }  # fmt: skip

    @cached_property
    def sae(self) -> Any:
        return features.train(**self.training)

    @cached_property
    def labelled(self) -> Any:
        codes = torch.randint(0, 32, (16, 4, 12), generator=torch.Generator().manual_seed(3))
        return features.Clips(4 * PROMPTS, codes, {"kind": 8 * ["a", "b"]})

    @cached_property
    def indexed(self) -> Any:
        return features.index(self.lens, self.sae, self.labelled, progress=False)

    @cached_property
    def ablation(self) -> Any:
        return attention.ablate(self.lens, PROMPTS, self.codes, layers=[1])

    @cached_property
    def attributed(self) -> Any:
        """An attribution whose clean and corrupted scores differ clearly, regardless of the random weights."""
        found = attribution.attribute(
            self.lens, PROMPTS[::2], PROMPTS[1::2], self.codes[:2], sites=["text_states", "resid_post"], steps=2,
            method="integrated", check=2, check_pairs=1,
        )  # fmt: skip
        return replace(found, clean_scores=found.corrupted_scores + np.array([[1.0], [1.1]]))

    @cached_property
    def direct(self) -> Any:
        return attribution.direct(self.lens, PROMPTS, self.codes)

    @cached_property
    def gathered(self) -> Any:
        return layer_attribution.gather(tempo=self.directions)

    @cached_property
    def audible(self) -> Any:
        return logit_lens.listen(self.lens, PROMPTS[:2], self.codes[:2], seeds=0)

    @cached_property
    def seen(self) -> Any:
        return logit_lens.read(self.lens, PROMPTS, self.codes)

    @cached_property
    def patched(self) -> Any:
        return planted.patched("seconds", ["0.00-0.25", "0.25-0.50"], ["resid_post"])

    @cached_property
    def pairs(self) -> Any:
        return patching.pairs(self.lens, self.sets, 2, seconds=0.4)

    @cached_property
    def rows(self) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(2, 12, 4))

    @cached_property
    def components(self) -> Any:
        return pca.fit(self.rows, ["a", "b"] * 6, n_shuffles=9)

    @cached_property
    def paths(self) -> Any:
        values = np.random.default_rng(0).normal(size=(2, 12, 5, 4))
        return pca.trajectories(values, ["a", "b"] * 6, frame_rate=25.0)

    @cached_property
    def placed(self) -> Any:
        found = placement.place(
            self.lens, self.sets, self.directions, compute=(), codes=self.codes[:2], prompts=["piano", "song"],
            n_random=1, n_bootstrap=0, screen_seconds=0, progress=False,
        )  # fmt: skip
        # A model with random weights gives no direction that placement accepts.
        return replace(found, random=(), candidates=found.candidates.assign(alignment=0.9, strength=1.0))

    @property
    def comparing(self) -> dict[str, Any]:
        """Arguments of a small comparison of methods."""
        return {
            "concepts": [replace(self.sets, test=("song", "drums"))], "methods": ["probe"], "n_random": 0,
            "measured": {"tempo": "loudness"}, "places": {"tempo": methods.Place("one-to-one", 1, 0.5)},
            "n_shuffled": 0, "doses": (-1, 1), "prompts": 2, "seconds": 0.3, "engine": "fast", "n_jobs": 0,
            "n_bootstrap": 5, "n_permutations": 5, "progress": False,
        }  # fmt: skip

    @cached_property
    def methods(self) -> Any:
        return methods.compare(self.lens, **self.comparing)

    @cached_property
    def dataset(self) -> Any:
        return probing.Dataset.from_prompts(self.lens, 3 * PROMPTS, 6 * ["a", "b"], seconds=0.3)

    @cached_property
    def probed(self) -> Any:
        return probing.probe(self.lens, self.dataset, baselines=(), folds=2, **QUICK)

    @cached_property
    def compared(self) -> Any:
        return reading_comparison.compare(self.lens, self.sets, positions=["first"], branches=["cond"], progress=False)

    @cached_property
    def cosines(self) -> Any:
        return similarity.cosine_map(self.directions)

    @cached_property
    def comparison(self) -> Any:
        return similarity.compare({"one": self.directions, "two": -self.directions})

    @cached_property
    def settings(self) -> Any:
        return study.Settings(
            poles=2, reading_seconds=0.5, development=2, development_seeds=1, test=2, test_seeds=1, n_random=1,
            n_shuffled=1, strengths={"one-to-one": (1.0,)}, doses=(1.0,), seconds=1.0, shown=1, pairs=2, n_jobs=0,
        )  # fmt: skip

    @cached_property
    def studied(self) -> Any:
        return planted.study()

    @cached_property
    def tested(self) -> Any:
        clips = self.studied.clips
        return clips[(clips["split"] == "test") & clips["kind"].isin(["baseline", "steered"])]

    @cached_property
    def sounding(self) -> Any:
        """A study with the sound of two prompts."""
        return listeners.study(prompts=2, seconds=0.5)

    @cached_property
    def listening(self) -> Path:
        """A listening test with two responses."""
        return self._answered("pairs", listeners.chooser(lambda *_: 0.5))

    def _answered(self, mode: Any, answered: Any) -> Path:
        anchor_hz = 400.0 if mode == "mushra" else None
        place = listening_test.write(self.sounding, self.place(), mode=mode, pairs=4, anchor_hz=anchor_hz)
        for name in "ab":
            listeners.send(place, listeners.response(place, name, answered))
        return place

    @cached_property
    def preferred(self) -> Any:
        return listening_test.read(self.listening, n_bootstrap=5)

    @cached_property
    def rated(self) -> Any:
        means = {"reference": 100.0, "positive": 60.0, "negative": 50.0, "anchor": 10.0}
        return listening_test.read(self._answered("mushra", listeners.rater(means, noise=1.0)), n_bootstrap=5)

    @cached_property
    def study_folder(self) -> Path:
        place = self.folder / "study"
        study.run(self.lens, "tempo", place, settings=self.settings, progress=False, tell=lambda _: None)
        return place

    @cached_property
    def study_file(self) -> Path:
        place = self.folder / "study.toml"
        place.write_text("concept = 'tempo'\nothers = 'none'\n[settings]\nseed = 1\n")
        return place

    @cached_property
    def listed(self) -> Path:
        """A folder of studies."""
        place = self.folder / "listed"
        shutil.copytree(self.study_folder, place / "tempo")
        return place

    @cached_property
    def swept(self) -> Any:
        place = self.folder / "swept"
        return sweep.run(self.lens, self.directions, out=place, **self.sweeping)

    @cached_property
    def sweeping(self) -> dict[str, Any]:
        return {
            "strengths": (-1.0, 1.0), "layers": [1], "prompts": PROMPTS[:2], "seeds": 1, "n_random": 1, "seconds": 0.4,
            "measures": ["brightness", "loudness"], "n_jobs": 0, "progress": False,
        }  # fmt: skip

    @cached_property
    def sweep_file(self) -> Path:
        """The settings of a sweep along directions from a file, which need not be read."""
        place = self.folder / "sweep.toml"
        source = self.directions.save(self.folder / "swept.safetensors")
        place.write_text(f"concepts = ['{source}']\n[settings]\nprompts = 2\nseconds = 0.4\n")
        return place

    @cached_property
    def dosed(self) -> Any:
        """Clips with planted effects on many measures."""
        return planted_sweep(n_random=2)

    @cached_property
    def conditions(self) -> list[Any]:
        add = al.Add(torch.ones(48), layers=[1])
        return [sweep.Condition("baseline"), sweep.Condition("more", (add,), labels={"strength": 1.0})]

    @cached_property
    def averages(self) -> Any:
        values = np.random.default_rng(0).normal(size=12)
        return statistics.means(values, np.arange(12) % 6, n_bootstrap=20, n_permutations=20)

    @cached_property
    def strangers(self) -> dict[str, Any]:
        """Values that are valid for other arguments, or belong to another model."""
        return {
            "a lens": self.lens, "melody's lens": self.melody, "a cache": self.cache, "a set": self.sets,
            "melody's directions": self.others, "directions": self.directions, "clips": self.clips,
            "an intervention": al.Scale(0.5), "a file of bytes": self.sound, "a model": self.lens.model,
            "dataset": self.dataset, "settings": self.settings, "a table": self.dosed.table,
        }  # fmt: skip
