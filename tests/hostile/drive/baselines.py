"""A valid call of every public name: the arguments that it needs, as a function of the world.

A name without an entry is called without arguments; one that needs some, and has no entry, fails `test_drive`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import audiolens as al
from analysis import Resampling, comparison, features, harvest, methods, patching, pooling, statistics, sweep, trackers
from analysis.distributed import Ray
from audiolens.compatibility import Hook
from audiolens.directions.calibration import Calibration
from audiolens.directions.heads import Heads
from hostile.drive.world import PROMPTS, RATE, World

TARGET: dict[str, Any] = {
    "prompts": PROMPTS[:1], "measure": "brightness", "target": 2000.0, "seconds": 0.4, "layer": 1, "max_clips": 1,
    "progress": False,
}  # fmt: skip
CURVE: dict[str, Any] = {
    "measure": "tempo", "measured_in": "BPM", "strengths": (-1.0, 0.0, 1.0), "values": (80.0, 100.0, 110.0),
    "low": (None, 1.0, 2.0), "high": (None, 1.0, 2.0), "failed": (0.0, 0.0, 0.0), "place": {"layer": 1}, "clips": 4,
    "seconds": 5.0, "guidance_scale": 3.0,
}  # fmt: skip
HEADS: dict[str, Any] = {
    **{name: torch.full((3, 4), 0.7) for name in ("accuracy", "separation", "spread", "p")},
    "least_p": torch.tensor(0.005), "layers": (0, 1, 2),
}  # fmt: skip
Arguments = Callable[[World], dict[str, Any]]
INSTANCES: dict[str, Callable[[World], Any]] = {
    "audiolens.Ablate": lambda w: al.Ablate(torch.ones(48)),
    "audiolens.ActivationCache": lambda w: w.cache,
    "audiolens.Add": lambda w: al.Add(torch.ones(48)),
    "audiolens.Apply": lambda w: al.Apply(lambda value: value),
    "audiolens.AudioLens": lambda w: w.lens,
    "audiolens.Clamp": lambda w: al.Clamp(torch.ones(48), 1.0),
    "audiolens.Directions": lambda w: w.directions,
    "audiolens.Erase": lambda w: al.Erase(w.directions),
    "audiolens.Gate": lambda w: al.Gate(weights=torch.ones(48), layer=1),
    "audiolens.Generation": lambda w: w.clips,
    "audiolens.Intervention": lambda w: al.Add(torch.ones(48)),
    "audiolens.Reading": lambda w: al.Reading("resid_post"),
    "audiolens.Replace": lambda w: al.Replace(torch.ones(48)),
    "audiolens.Sampling": lambda w: al.Sampling(),
    "audiolens.Scale": lambda w: al.Scale(0.5),
    "audiolens.Targeted": lambda w: al.steer_to(w.lens, w.directions, **TARGET),
    "audiolens.directions.calibration.Calibration": lambda w: Calibration(**CURVE),
    "audiolens.directions.evidence.Evidence": lambda w: w.directions.evidence,
    "audiolens.directions.heads.Heads": lambda w: Heads(**HEADS),
    "audiolens.directions.leace.Eraser": lambda w: w.erasing.eraser,
    "audiolens.cache.decomposition.Components": lambda w: w.cache.accumulated_resid(),
    "audiolens.compatibility.Hook": lambda w: Hook("blocks.1.hook_resid_post"),
    "audiolens.model.config.LensConfig": lambda w: w.lens.config,
    "audiolens.measure.Drift": lambda w: w.drift,
    "audiolens.prompts.Balance": lambda w: w.sets.balance(),
    "audiolens.prompts.Counterfactuals": lambda w: al.prompts.counterfactuals(["a fast song"], ("fast", "slow")),
    "audiolens.prompts.PromptSet": lambda w: w.sets,
    "audiolens.prompts.Rejected": lambda w: al.prompts.Rejected(1, "a song", "absent"),
    "audiolens.model.provenance.Provenance": lambda w: w.directions.meta,
    "audiolens.directions.samples.Samples": lambda w: w.directions.samples,
    "audiolens.model.timeline.Timeline": lambda w: w.lens.timeline(12),
    "audiolens.tracing.trace.SiteValue": lambda w: w.lens.site("resid_post", 1),
    "analysis.Resampling": lambda w: Resampling(n_bootstrap=5, seed=1),
    "analysis.attention.HeadAblation": lambda w: w.ablation,
    "analysis.features.Clips": lambda w: w.labelled,
    "analysis.features.FeatureIndex": lambda w: w.indexed,
    "analysis.features.SAE": lambda w: w.sae,
    "analysis.features.Scores": lambda w: features.score(w.lens, w.sae, PROMPTS[:2], w.codes[:2]),
    "analysis.features.Splice": lambda w: features.splice(w.sae, ablate=3),
    "analysis.harvest.Harvest": lambda w: w.harvested,
    "analysis.harvest.HarvestPlan": lambda w: harvest.plan(w.lens, PROMPTS[:2], seconds=0.2),
    "analysis.harvest.ShardOrder": lambda w: w.harvested.vectors(layer=1).order(),
    "analysis.harvest.Vectors": lambda w: w.harvested.vectors(layer=1),
    "analysis.attention.LagAttention": lambda w: w.lags,
    "analysis.attention.TextAttention": lambda w: w.words,
    "analysis.attribution.AttributionResult": lambda w: w.attributed,
    "analysis.attribution.DirectResult": lambda w: w.direct,
    "analysis.attribution.Scores": lambda w: next(iter(w.attributed.sites.values())),
    "analysis.distributed.Ray": lambda w: Ray("local", workers=1),
    "analysis.layer_attribution.LayerEvidence": lambda w: w.gathered.evidence[0],
    "analysis.comparison.Slope": lambda w: comparison.fit_slopes(w.tested, "tempo_ioi", 1.0)[0],
    "analysis.comparison.StudyComparison": lambda w: comparison.compare([w.studied]),
    "analysis.layer_attribution.LayerAttribution": lambda w: w.gathered,
    "analysis.listening_test.Preference": lambda w: w.preferred,
    "analysis.listening_test.Ratings": lambda w: w.rated,
    "analysis.logit_lens.Audible": lambda w: w.audible,
    "analysis.logit_lens.LogitLensResult": lambda w: w.seen,
    "analysis.patching.Gap": lambda w: w.patched.gap(),
    "analysis.patching.LogLikelihood": lambda w: patching.LogLikelihood((0.0, 0.2)),
    "analysis.patching.Pairs": lambda w: w.pairs,
    "analysis.patching.PatchingResult": lambda w: w.patched,
    "analysis.patching.GridPlan": lambda w: patching.plan(w.lens, PROMPTS[0], PROMPTS[1], w.codes[:1], timed=False),
    "analysis.patching.Sound": lambda w: patching.Sound("loudness", 0.4, pairs=1),
    "analysis.patching.SoundPlan": lambda w: patching.plan(
        w.lens, PROMPTS[0], PROMPTS[1], None, patching.Sound("loudness", 0.4, pairs=1), timed=False
    ),
    "analysis.methods.MethodsResult": lambda w: w.methods,
    "analysis.methods.NotApplicable": lambda w: methods.NotApplicable("no measure"),
    "analysis.methods.Place": lambda w: methods.Place("one-to-one", 1, 0.5),
    "analysis.methods.Reading": lambda w: methods.Reading(
        w.sets, 2, w.directions, methods.Place("one-to-one", 1, 0.5), "loudness"
    ),
    "analysis.pca.PCAResult": lambda w: w.components,
    "analysis.pca.Trajectories": lambda w: w.paths,
    "analysis.placement.Placement": lambda w: w.placed,
    "analysis.pooling.Pooled": lambda w: pooling.pooled([0.1, 0.3], [0.1, 0.2]),
    "analysis.probing.Dataset": lambda w: w.dataset,
    "analysis.probing.ProbeResult": lambda w: w.probed,
    "analysis.reading_comparison.Readings": lambda w: w.compared,
    "analysis.similarity.Comparison": lambda w: w.comparison,
    "analysis.similarity.CosineMap": lambda w: w.cosines,
    "analysis.statistics.AUC": lambda w: statistics.auc([1, 2, 3, 4], [0, 0, 1, 1], n_bootstrap=0),
    "analysis.statistics.Effect": lambda w: statistics.effect([1, 2.0], [1, 1.0], ["a", "b"], n_bootstrap=0),
    "analysis.statistics.Means": lambda w: w.averages,
    "analysis.statistics.Monotonicity": lambda w: statistics.spearman([0, 1, 2, 3], [0, 1, 2, 4]),
    "analysis.statistics.RankTest": lambda w: statistics.rank_test(1.0, [0.0, 2.0]),
    "analysis.study.Settings": lambda w: w.settings,
    "analysis.study.Study": lambda w: w.studied,
    "analysis.sweep.Condition": lambda w: w.conditions[1],
    "analysis.sweep.Estimate": lambda w: sweep.plan(w.lens, w.directions, timed=False, **_planned(w)),
    "analysis.sweep.Plan": lambda w: sweep.packed(w.conditions, [("piano", 0)]),
    "analysis.sweep.SweepResult": lambda w: w.swept,
    "analysis.trackers.Tracker": lambda w: trackers.Tracker(lambda _: None, lambda _: None),
    "analysis.sweep.dose.CrossEffects": lambda w: w.dosed.cross_effects("tempo", n_bootstrap=5),
    "analysis.sweep.dose.DoseResponse": lambda w: w.dosed.dose_response("tempo", n_bootstrap=5),
    "analysis.sweep.tradeoff.Front": lambda w: w.dosed.front("tempo", n_bootstrap=5),
    "analysis.sweep.tradeoff.LayerMap": lambda w: w.dosed.layer_map("tempo"),
    "analysis.sweep.tradeoff.Limits": lambda w: w.dosed.limits("tempo", n_bootstrap=5),
    "analysis.sweep.tradeoff.Strategies": lambda w: w.dosed.strategies("tempo", n_bootstrap=5),
}


def _planned(w: World) -> dict[str, Any]:
    return {name: value for name, value in w.sweeping.items() if name not in ("n_jobs", "progress")}


def _heard(w: World) -> dict[str, Any]:
    return {"audio": w.audio, "sample_rate": RATE}


def _pair(w: World) -> dict[str, Any]:
    return {"clean": PROMPTS[::2], "corrupted": PROMPTS[1::2], "codes": w.codes[:2]}


def _read(w: World) -> dict[str, Any]:
    return {"lens": w.lens, "prompts": PROMPTS[:2], "codes": w.codes[:2]}


VECTOR = torch.ones(48)
VALUES = np.arange(12.0)
DOSE = {"concept": "tempo", "n_bootstrap": 5}
PATCH: dict[str, Any] = {
    "windows": 2, "layers": [1], "n_bootstrap": 5, "n_permutations": 5, "progress": False,
}  # fmt: skip
LENS, ANALYSIS = "audiolens.AudioLens", "analysis"
ARGUMENTS: dict[str, Arguments] = {
    f"{LENS}": lambda w: {"model": w.lens.model, "tokenizer": w.lens.tokenizer},
    f"{LENS}.__call__": lambda w: {"prompts": PROMPTS[:2], "codes": w.codes[:2]},
    f"{LENS}.decode": lambda w: {"codes": w.codes[:1]},
    f"{LENS}.decode_codes": lambda w: {"codes": w.codes[:1]},
    f"{LENS}.encode_audio": lambda w: {"waveform": w.audio[0], "sample_rate": RATE},
    f"{LENS}.find_sites": lambda w: {"names": "resid_post"},
    f"{LENS}.from_pretrained": lambda w: {"name": w.checkpoint},
    f"{LENS}.generate": lambda w: {"prompts": PROMPTS[:1], "seconds": 0.2, "seeds": 0, "sites": "resid_post"},
    f"{LENS}.iter_cache": lambda w: {
        "prompts": PROMPTS[:2], "codes": w.codes[:2], "batch_size": 1, "progress": False,
    },
    f"{LENS}.run_with_cache": lambda w: {"prompts": PROMPTS[:2], "codes": w.codes[:2]},
    f"{LENS}.run_with_hooks": lambda w: {
        "prompts": PROMPTS[:2], "codes": w.codes[:2], "fwd_hooks": [("resid_post", lambda value, hook: value)],
    },
    f"{LENS}.run_with_interventions": lambda w: {
        "prompts": PROMPTS[:2], "codes": w.codes[:2], "interventions": al.Add(VECTOR),
    },
    f"{LENS}.site": lambda w: {"name": "resid_post", "layer": 1},
    f"{LENS}.text_tokens": lambda w: {"prompts": PROMPTS},
    f"{LENS}.timeline": lambda w: {"frames": 12},
    f"{LENS}.to": lambda w: {"device": "cpu"},
    f"{LENS}.to_str_tokens": lambda w: {"prompts": PROMPTS},
    f"{LENS}.trace": lambda w: {"prompts": PROMPTS[:2], "codes": w.codes[:2]},
    "audiolens.ActivationCache.__contains__": lambda w: {"key": ("resid_post", 1)},
    "audiolens.ActivationCache.__getitem__": lambda w: {"key": ("resid_post", 1)},
    "audiolens.ActivationCache.at_layers": lambda w: {"layers": [1]},
    "audiolens.ActivationCache.axes_of": lambda w: {"site": "resid_post", "layer": 1},
    "audiolens.ActivationCache.get": lambda w: {"key": ("resid_post", 1)},
    "audiolens.ActivationCache.layers": lambda w: {"site": "resid_post"},
    "audiolens.ActivationCache.load": lambda w: {"path": w.cache.save(w.folder / "cache.safetensors")},
    "audiolens.ActivationCache.numbered": lambda w: {"layers": [1, -1]},
    "audiolens.ActivationCache.project": lambda w: {"direction": w.directions},
    "audiolens.ActivationCache.rows": lambda w: {"rows": [0]},
    "audiolens.ActivationCache.save": lambda w: {"path": w.folder / "cache.safetensors"},
    "audiolens.ActivationCache.seconds": lambda w: {"span": (0.0, 0.2)},
    "audiolens.ActivationCache.stack": lambda w: {"site": "resid_post"},
    "audiolens.ActivationCache.stack_activation": lambda w: {"site": "resid_post"},
    "audiolens.ActivationCache.stack_norms": lambda w: {"site": "resid_post"},
    "audiolens.Directions.__add__": lambda w: {"other": w.directions},
    "audiolens.Directions.__contains__": lambda w: {"layer": 1},
    "audiolens.Directions.__getitem__": lambda w: {"layer": 1},
    "audiolens.Directions.__mul__": lambda w: {"factor": 2.0},
    "audiolens.Directions.__radd__": lambda w: {"other": 0},
    "audiolens.Directions.__rmul__": lambda w: {"factor": 2.0},
    "audiolens.cache.decomposition.Components.__getitem__": lambda w: {"label": "1_pre"},
    "audiolens.Directions.__sub__": lambda w: {"other": 2 * w.directions},
    "audiolens.Directions.__truediv__": lambda w: {"divisor": 2.0},
    "audiolens.Directions.at": lambda w: {"layers": [1]},
    "audiolens.Directions.cosine": lambda w: {"other": w.directions},
    "audiolens.Directions.from_gguf": lambda w: {"path": w.directions.to_gguf(w.folder / "d.gguf"), "lens": w.lens},
    "audiolens.Directions.from_layers": lambda w: {"vectors": w.directions.to_layers(), "lens": w.lens},
    "audiolens.Directions.load": lambda w: {"path": w.directions.save(w.folder / "d.safetensors"), "lens": w.lens},
    "audiolens.Directions.orthogonal_to": lambda w: {"*others": w.directions.random_like(1)},
    "audiolens.Directions.random_like": lambda w: {"seed": 0},
    "audiolens.Directions.residual_norm": lambda w: {"layer": 1},
    "audiolens.Directions.save": lambda w: {"path": w.folder / "d.safetensors"},
    "audiolens.Directions.to_gguf": lambda w: {"path": w.folder / "d.gguf"},
    "audiolens.Directions.permutation_test": lambda w: {"n_shuffles": 3},
    "audiolens.Directions.shuffled": lambda w: {"seed": 0},
    "audiolens.Directions.with_norms_of": lambda w: {"other": w.directions},
    "audiolens.Directions.calibrate": lambda w: {
        "lens": w.lens, "measure": "brightness", "strengths": [-1.0, 1.0], "prompts": PROMPTS[:1], "seeds": 1,
        "seconds": 0.4, "layer": 1, "progress": False,
    },
    "audiolens.Gate": lambda w: {"weights": torch.ones(48), "layer": 1},
    "audiolens.gate": lambda w: {"directions": w.directions, "layer": 1},
    "audiolens.steer_to": lambda w: {"lens": w.lens, "directions": w.directions, **TARGET},
    "audiolens.directions.calibration.Calibration": lambda w: CURVE,
    "audiolens.directions.calibration.Calibration.at": lambda w: {"strength": 0.5},
    "audiolens.directions.calibration.Calibration.from_dict": lambda w: {"values": Calibration(**CURVE).as_dict()},
    "audiolens.directions.calibration.Calibration.strength": lambda w: {"target": "90 BPM"},
    "audiolens.Generation.__getitem__": lambda w: {"row": 0},
    "audiolens.Generation.save": lambda w: {"folder": w.place()},
    "audiolens.difference_in_means": lambda w: {
        "lens": w.lens, "positive": ["fast"], "negative": ["slow"], "seconds": 0.2, "progress": False,
        "codes": "shared", "neutral": ["piano"],
    },
    "audiolens.Erase": lambda w: {"maps": w.erasing},
    "audiolens.estimate": lambda w: {"samples": w.directions.samples, "method": "ridge"},
    "audiolens.directions.heads.Heads": lambda w: HEADS,
    "audiolens.directions.heads.Heads.at": lambda w: {"layers": [1]},
    "audiolens.directions.heads.Heads.best": lambda w: {"k": 2},
    "audiolens.directions.heads.Heads.of_file": lambda w: {
        "tensors": {name: value for name, value in HEADS.items() if name != "layers"}, "layers": (0, 1, 2),
    },
    "audiolens.directions.leace.Eraser.__call__": lambda w: {"values": torch.ones(2, 48), "layer": 1},
    "audiolens.directions.leace.Eraser.at": lambda w: {"layers": [1]},
    "audiolens.directions.leace.Eraser.index": lambda w: {"layer": 1},
    "audiolens.orthogonalised": lambda w: {"*directions": w.directions},
    "audiolens.steer": lambda w: {"directions": w.directions, "layer": 1},
    "audiolens.directions.evidence.Evidence.of_file": lambda w: {
        "tensors": {name: value for name, value in vars(w.directions.evidence).items() if value is not None},
        "n_layers": len(w.directions.evidence.auc),
    },
    "audiolens.model.config.LensConfig.prefix": lambda w: {"tokens": 3},
    "audiolens.model.provenance.Provenance.from_dict": lambda w: {"values": w.directions.meta.as_dict()},
    "audiolens.model.provenance.Provenance.refuse_other": lambda w: {"lens": w.lens},
    "audiolens.model.timeline.Timeline.select": lambda w: {"seconds": (0.0, 0.2)},
    "audiolens.measure.table": lambda w: {**_heard(w), "measures": ["loudness"]},
    "audiolens.measure.table_of_files": lambda w: {"paths": [w.sound], "measures": ["loudness"]},
    "audiolens.measure.refuse_lacking": lambda w: {"measures": ["loudness"]},
    "audiolens.measure.failed": lambda w: {"steered": w.clips, "baseline": w.clips},
    "audiolens.measure.failures": lambda w: {"steered": w.clips, "baseline": w.clips},
    "audiolens.measure.code_entropy": lambda w: {"codes": w.codes},
    "audiolens.measure.code_nats": _read,
    "audiolens.measure.drift": lambda w: {"lens": w.lens, "out": w.clips, "baseline": w.clips},
    "audiolens.measure.codec_features": lambda w: {"lens": w.lens, "clips": w.clips, "window_seconds": None},
    "audiolens.measure.frechet_distance": lambda w: {
        "lens": w.lens, "a": w.clips, "b": w.clips, "window_seconds": 0.1, "least": 0.01,
    },
    "audiolens.measure.fad": lambda w: {
        "a": w.audio, "b": w.audio, "sample_rate": RATE, "model": w.clap, "least": 0.01,
    },
    "audiolens.measure.clap_distance": lambda w: {
        "audio": w.audio, "reference": w.audio, "sample_rate": RATE, "model": w.clap,
    },
    "audiolens.measure.clap_embeddings": lambda w: {**_heard(w), "model": w.clap},
    "audiolens.measure.clap_score": lambda w: {**_heard(w), "texts": ["fast", "slow"], "model": w.clap},
    "audiolens.prompts.PromptSet.completed": lambda w: {"neutral": w.neutral},
    "audiolens.prompts.PromptSet.prompted": lambda w: {"prompt": "piano", "pole": "fast"},
    "audiolens.prompts.PromptSet.save": lambda w: {"path": w.place(made=True) / "own.toml"},
    "audiolens.prompts.PromptSet.words": lambda w: {"pole": "fast"},
    "audiolens.prompts.counterfactuals": lambda w: {"captions": ["a fast song"], "words": ("fast", "slow")},
    "audiolens.prompts.from_file": lambda w: {"path": w.prompt_file},
    "audiolens.prompts.from_files": lambda w: {"positive": w.lines("positive"), "negative": w.lines("negative")},
    "audiolens.prompts.load": lambda w: {"concept": "tempo"},
    "audiolens.schedules.cosine": lambda w: {"from_seconds": 0.0, "to_seconds": 0.2},
    "audiolens.schedules.exponential": lambda w: {"half_life_seconds": 0.1},
    "audiolens.schedules.linear": lambda w: {"from_seconds": 0.0, "to_seconds": 0.2},
    "audiolens.schedules.piecewise": lambda w: {"points": [(0.0, 0.0), (0.2, 1.0)]},
    f"{ANALYSIS}.attention.TextAttention.listens": lambda w: {"word": "fast"},
    f"{ANALYSIS}.attention.TextAttention.word": lambda w: {"word": ["fast", "slow"]},
    f"{ANALYSIS}.attention.ablate": lambda w: {**_read(w), "layers": [1]},
    f"{ANALYSIS}.attention.beat_score": lambda w: {"profiles": np.ones((2, 20)), "beat_steps": 4.0},
    f"{ANALYSIS}.attention.by_lag": lambda w: {**_read(w), "beat_seconds": [0.12, 0.16], "n_permutations": 9},
    f"{ANALYSIS}.attention.to_text": _read,
    f"{ANALYSIS}.attribution.AttributionResult.by_layer": lambda w: {"site": "resid_post"},
    f"{ANALYSIS}.attribution.AttributionResult.normalised": lambda w: {"site": "resid_post"},
    f"{ANALYSIS}.attribution.AttributionResult.of": lambda w: {"site": "resid_post"},
    f"{ANALYSIS}.attribution.AttributionResult.over": lambda w: {"site": "resid_post"},
    f"{ANALYSIS}.attribution.attribute": lambda w: {
        "lens": w.lens, **_pair(w), "sites": "resid_post", "layers": [1], "check": 1, "check_pairs": 1,
    },
    f"{ANALYSIS}.attribution.direct": _read,
    f"{ANALYSIS}.layer_attribution.LayerAttribution.__getitem__": lambda w: {"name": w.gathered.evidence[0].name},
    f"{ANALYSIS}.layer_attribution.gather": lambda w: {"tempo": w.directions, "units": {"tempo": "a unit"}},
    f"{ANALYSIS}.listening_test.read": lambda w: {"folder": w.listening, "n_bootstrap": 5},
    f"{ANALYSIS}.listening_test.write": lambda w: {"study": w.sounding, "folder": w.place(), "pairs": 1, "checks": 0},
    f"{ANALYSIS}.logit_lens.Audible.__getitem__": lambda w: {"layer": 1},
    f"{ANALYSIS}.logit_lens.Audible.save": lambda w: {"folder": w.place()},
    f"{ANALYSIS}.logit_lens.Audible.to_frame": lambda w: {"measures": ["loudness"]},
    f"{ANALYSIS}.logit_lens.listen": lambda w: {
        "lens": w.lens, "prompts": PROMPTS[:1], "codes": w.codes[:1], "layers": [1], "seeds": 0,
    },
    f"{ANALYSIS}.logit_lens.read": _read,
    f"{ANALYSIS}.methods.NotApplicable": lambda _: {},
    f"{ANALYSIS}.methods.Reading.along": lambda w: {"directions": w.directions},
    f"{ANALYSIS}.methods.Reading.kept": lambda w: {"name": "probe", "make": lambda: w.directions},
    f"{ANALYSIS}.methods.area_under": lambda w: {"drifts": VALUES[:2], "effects": VALUES[:2], "limit": 1.0},
    f"{ANALYSIS}.methods.compare": lambda w: {"lens": w.lens, **w.comparing},
    f"{ANALYSIS}.methods.estimator": lambda w: {"method": "ridge", "penalty": 1.0},
    f"{ANALYSIS}.patching.pairs": lambda w: {"lens": w.lens, "prompts": w.sets, "n": 1, "seconds": 0.3},
    f"{ANALYSIS}.patching.patch": lambda w: {"lens": w.lens, **_pair(w), **PATCH},
    f"{ANALYSIS}.patching.plan": lambda w: {"lens": w.lens, **_pair(w), "windows": 2, "timed": False},
    f"{ANALYSIS}.pca.fit": lambda w: {"activations": w.rows, "labels": ["a", "b"] * 6, "n_shuffles": 9},
    f"{ANALYSIS}.pca.trajectories": lambda w: {
        "activations": w.rows[:, :, None], "labels": ["a", "b"] * 6, "frame_rate": 25.0,
    },
    f"{ANALYSIS}.placement.Placement.steer": lambda _: {"amount": 0.5},
    f"{ANALYSIS}.placement.Placement.with_more": lambda w: {"row_steps": 3, "certainty": 0.5},
    f"{ANALYSIS}.placement.place": lambda w: {
        "lens": w.lens, "concept": w.sets, "directions": w.directions, "compute": (), "codes": w.codes[:2],
        "prompts": ["piano", "song"], "n_random": 1, "n_bootstrap": 0, "screen_seconds": 0.3, "progress": False,
    },
    f"{ANALYSIS}.probing.Dataset.from_arrays": lambda w: {
        "lens": w.lens, "sounds": list(w.audio), "sample_rate": RATE, "labels": ["a", "b"],
    },
    f"{ANALYSIS}.probing.Dataset.from_folder": lambda w: {
        "lens": w.lens, "folder": w.sounds, "table": w.sounds / "labels.csv", "label": "label",
    },
    f"{ANALYSIS}.probing.Dataset.from_prompts": lambda w: {
        "lens": w.lens, "prompts": PROMPTS[:2], "labels": ["a", "b"], "seconds": 0.2,
    },
    f"{ANALYSIS}.probing.Dataset.from_synth": lambda w: {"lens": w.lens, "concept": "tempo", "n": 4, "seconds": 0.5},
    f"{ANALYSIS}.probing.ProbeResult.gains": lambda w: {"n_bootstrap": 5},
    f"{ANALYSIS}.probing.ProbeResult.directions": lambda w: {"towards": "a"},
    f"{ANALYSIS}.probing.probe": lambda w: {
        "lens": None, "data": w.rows, "labels": ["a", "b"] * 6, "folds": 2, "n_shuffles": 1, "n_bootstrap": 0,
    },
    f"{ANALYSIS}.reading_comparison.compare": lambda w: {
        "lens": w.lens, "sets": w.sets, "positions": ["first"], "branches": ["cond"], "progress": False, "prompts": 2,
    },
    f"{ANALYSIS}.reading_comparison.within_poles": lambda w: {
        "projections": VALUES, "rates": VALUES, "labels": VALUES < 6,
    },
    f"{ANALYSIS}.report.write": lambda w: {"study": w.studied, "folder": w.place(made=True)},
    f"{ANALYSIS}.similarity.chance_cosine": lambda w: {"width": 48},
    f"{ANALYSIS}.similarity.chance_p": lambda w: {"cosines": np.array([0.1, 0.2]), "width": 48},
    f"{ANALYSIS}.similarity.compare": lambda w: {"directions": {"one": w.directions, "two": -w.directions}},
    f"{ANALYSIS}.comparison.Slope.from_scale": lambda _: {"value": 0.4},
    f"{ANALYSIS}.comparison.StudyComparison.save": lambda w: {"folder": w.place()},
    f"{ANALYSIS}.comparison.compare": lambda w: {"studies": [w.studied], "names": ["one"]},
    f"{ANALYSIS}.comparison.fit_slopes": lambda w: {"clips": w.tested, "measured": "tempo_ioi", "strength": 1.0},
    f"{ANALYSIS}.features.FeatureIndex.page": lambda w: {
        "path": w.place(made=True) / "page.html", "lens": w.lens, "latents": [1], "sounds": 1,
    },
    f"{ANALYSIS}.features.SAE.__call__": lambda w: {"activations": torch.ones(2, 48)},
    f"{ANALYSIS}.features.SAE.decode": lambda w: {"latents": torch.ones(2, 24)},
    f"{ANALYSIS}.features.SAE.directions": lambda w: {"latents": [1, 2]},
    f"{ANALYSIS}.features.SAE.encode": lambda w: {"activations": torch.ones(2, 48)},
    f"{ANALYSIS}.features.SAE.numbers": lambda w: {"name": "latents", "latents": [1, 2]},
    f"{ANALYSIS}.features.SAE.on": lambda w: {"device": torch.device("cpu")},
    f"{ANALYSIS}.features.SAE.refuse_other": lambda w: {"lens": w.lens},
    f"{ANALYSIS}.features.SAE.save": lambda w: {"folder": w.place()},
    f"{ANALYSIS}.features.index": lambda w: {"lens": w.lens, "sae": w.sae, "clips": w.labelled, "progress": False},
    f"{ANALYSIS}.features.load": lambda w: {"path": w.sae.save(w.place()), "lens": w.lens},
    f"{ANALYSIS}.features.score": lambda w: {
        "lens": w.lens, "sae": w.sae, "prompts": PROMPTS[:2], "codes": w.codes[:2],
    },
    f"{ANALYSIS}.features.splice": lambda w: {"sae": w.sae, "clamp": {3: 1.0}},
    f"{ANALYSIS}.features.synthesised": lambda w: {"lens": w.lens, "n": 64, "seconds": 1.0},
    f"{ANALYSIS}.features.train": lambda w: w.training,
    f"{ANALYSIS}.harvest.Harvest.load": lambda w: {"folder": w.harvested.folder},
    f"{ANALYSIS}.harvest.Harvest.vectors": lambda w: {"layer": 1},
    f"{ANALYSIS}.harvest.ShardOrder": lambda w: {"data": w.harvested.vectors(layer=1)},
    f"{ANALYSIS}.harvest.ShardOrder.set_epoch": lambda w: {"epoch": 3},
    f"{ANALYSIS}.harvest.Vectors.__getitem__": lambda w: {"index": 2},
    f"{ANALYSIS}.harvest.Vectors.place": lambda w: {"index": 2},
    f"{ANALYSIS}.harvest.harvest": lambda w: {**w.harvesting, "out": w.place()},
    f"{ANALYSIS}.harvest.plan": lambda w: {
        name: value for name, value in w.harvesting.items() if name != "progress"
    },
    f"{ANALYSIS}.similarity.cosine_map": lambda w: {"directions": w.directions},
    f"{ANALYSIS}.pooling.pooled": lambda w: {"values": [0.1, 0.3], "stderrs": [0.1, 0.2]},
    f"{ANALYSIS}.statistics.effect": lambda w: {
        "steered": VALUES, "baseline": VALUES + 1, "prompts": VALUES % 4, "n_bootstrap": 5,
    },
    f"{ANALYSIS}.statistics.auc": lambda w: {"scores": VALUES, "labels": VALUES > 5, "n_bootstrap": 5},
    f"{ANALYSIS}.statistics.means": lambda w: {
        "values": VALUES, "clusters": VALUES % 6, "n_bootstrap": 5, "n_permutations": 5,
    },
    f"{ANALYSIS}.statistics.rank_test": lambda w: {"observed": 1.0, "controls": [0.0, 2.0]},
    f"{ANALYSIS}.statistics.spearman": lambda w: {"strengths": VALUES[:6], "values": VALUES[:6]},
    f"{ANALYSIS}.statistics.correct": lambda w: {"p_values": [0.01, 0.5]},
    f"{ANALYSIS}.study.Settings.blocks": lambda w: {"n_layers": 3},
    f"{ANALYSIS}.study.Settings.check": lambda w: {"lens": w.lens, "sets": w.neutral},
    f"{ANALYSIS}.study.Settings.clips": lambda w: {"n_layers": 3, "sets": w.neutral},
    f"{ANALYSIS}.study.Settings.control_clips": lambda w: {"sets": w.neutral},
    f"{ANALYSIS}.study.Settings.development_clips": lambda w: {"sets": w.neutral},
    f"{ANALYSIS}.study.Settings.full": lambda w: {"seconds": 2.0},
    f"{ANALYSIS}.study.Settings.measure_of": lambda w: {"concept": "tempo"},
    f"{ANALYSIS}.study.Settings.measures_of": lambda w: {"concept": "tempo"},
    f"{ANALYSIS}.study.Settings.paper": lambda w: {"lens": w.lens, "seconds": 2.0},
    f"{ANALYSIS}.study.Settings.reading_seeds": lambda w: {"sets": w.neutral},
    f"{ANALYSIS}.study.Settings.test_clips": lambda w: {"sets": w.neutral},
    f"{ANALYSIS}.study.Study.save": lambda w: {"folder": w.place()},
    f"{ANALYSIS}.study.load_arguments": lambda w: {"file": w.study_file},
    f"{ANALYSIS}.study.load_folder": lambda w: {"folder": w.study_folder},
    f"{ANALYSIS}.study.prompts_of": lambda w: {"concept": "tempo", "lens": w.lens, "settings": w.settings},
    f"{ANALYSIS}.study.redraw": lambda w: {"folder": w.study_folder},
    f"{ANALYSIS}.study.write_index": lambda w: {"folder": w.listed},
    f"{ANALYSIS}.study.run": lambda w: {
        "lens": w.lens, "concept": "tempo", "out": w.place(), "settings": w.settings, "progress": False,
        "tell": lambda _: None,
    },
    f"{ANALYSIS}.sweep.Condition.asked": lambda w: {"prompt": "piano"},
    f"{ANALYSIS}.sweep.SweepResult.codes": lambda w: {"condition": "baseline"},
    f"{ANALYSIS}.sweep.SweepResult.compared": lambda w: {"distance": lambda *_: 1.0},
    f"{ANALYSIS}.sweep.SweepResult.cross_effects": lambda w: {**DOSE},
    f"{ANALYSIS}.sweep.SweepResult.dose_response": lambda w: {**DOSE},
    f"{ANALYSIS}.sweep.SweepResult.effects": lambda w: {"measured": "tempo_ioi", "n_bootstrap": 5},
    f"{ANALYSIS}.sweep.SweepResult.front": lambda w: {**DOSE},
    f"{ANALYSIS}.sweep.SweepResult.layer_map": lambda w: {"concept": "tempo", "strategy": "one-to-one"},
    f"{ANALYSIS}.sweep.SweepResult.limits": lambda w: {**DOSE},
    f"{ANALYSIS}.sweep.SweepResult.sound": lambda w: {"row": 0},
    f"{ANALYSIS}.sweep.SweepResult.strategies": lambda w: {**DOSE},
    f"{ANALYSIS}.sweep.clips": lambda w: {"prompts": PROMPTS, "seeds_per_prompt": 2},
    f"{ANALYSIS}.sweep.clips_per_second": lambda w: {
        "lens": w.lens, "prompt": "piano", "seconds": 0.3, "batch_size": 2,
    },
    f"{ANALYSIS}.sweep.effects": lambda w: {"table": w.dosed.table, "measured": "tempo_ioi", "n_bootstrap": 5},
    f"{ANALYSIS}.sweep.load_arguments": lambda w: {"lens": w.lens, "file": w.sweep_file},
    f"{ANALYSIS}.sweep.load_folder": lambda w: {"folder": w.swept.folder},
    f"{ANALYSIS}.sweep.merge": lambda w: {"conditions": w.conditions, "n_layers": 3},
    f"{ANALYSIS}.sweep.packed": lambda w: {"conditions": w.conditions, "clips": [("piano", 0), ("song", 1)]},
    f"{ANALYSIS}.sweep.plan": lambda w: {
        "lens": w.lens, "directions": w.directions, "timed": False, **_planned(w),
    },
    f"{ANALYSIS}.sweep.play": lambda w: {
        "lens": w.lens, "conditions": w.conditions, "clips": [("piano", 0)], "seconds": 0.4,
        "measures": ["loudness"], "n_jobs": 0,
    },
    f"{ANALYSIS}.sweep.run": lambda w: {"lens": w.lens, "directions": w.directions, **w.sweeping},
    f"{ANALYSIS}.trackers.Tracker.__call__": lambda w: {"rows": w.dosed.table.head(3)},
    f"{ANALYSIS}.trackers.Tracker.close": lambda w: {},
    f"{ANALYSIS}.trackers.scalars": lambda w: {"rows": w.dosed.table.head(3)},
}  # fmt: skip
for _name in (
    "tempo", "tempo_ambiguity", "tempo_candidates", "tempo_octave", "onset_rate", "pulse_clarity", "brightness",
    "ltas_centroid", "rolloff", "loudness", "pitch", "pitch_class", "mode",
):  # fmt: skip
    ARGUMENTS[f"audiolens.measure.{_name}"] = lambda w: {"audio": w.audio[0], "sample_rate": RATE}
ON_PLANTED = {
    "effects", "front", "limits", "strategies", "layer_map", "cross_effects", "dose_response", "plot", "figure",
}  # fmt: skip
"""Methods of a `SweepResult` that need many clips."""
FURTHER: dict[str, tuple[str, ...]] = {
    "analysis.harvest.plan": ("seeds", "codes", "seconds", "span", "reduce", "dtype", "heads", "batch_size"),
    "audiolens.Directions.orthogonal_to": ("*others",),
    "audiolens.estimate": ("penalty",),
    "audiolens.orthogonalised": ("*directions",),
    "analysis.layer_attribution.gather": ("tempo",),
    "analysis.placement.Placement.with_more": ("certainty",),
    "analysis.study.Settings.full": ("seconds", "poles", "measured_by", "strengths"),
    "analysis.study.Settings.paper": ("seconds", "strengths"),
    "analysis.sweep.SweepResult.cross_effects": ("strategy", "layer"),
    "analysis.sweep.SweepResult.layer_map": ("strategy", "branch"),
    "analysis.sweep.SweepResult.limits": ("bound", "loss"),
    "analysis.sweep.SweepResult.strategies": ("bound", "loss"),
    "analysis.study.load_arguments": ("seed", "poles", "measured_by"),
    "analysis.sweep.load_arguments": ("seeds", "strengths", "layers"),
    "analysis.sweep.plan": (
        "strengths", "layers", "prompts", "seeds", "n_random", "seconds", "measures", "batch_size", "sets", "branches",
    ),
}  # fmt: skip
"""Arguments passed through `*` and `**`."""
EXEMPT = {
    "audiolens.ActivationCache.__array__": "refuses: a cache is no array",
    "audiolens.ActivationCache.__dlpack__": "refuses: a cache is no array",
    "audiolens.Directions.__rsub__": "refuses: nothing less directions is meant",
    "audiolens.Directions.by_head": "refuses: these directions have no heads",
    **{
        f"audiolens.{operator}.{method}": "called by a run with what it bound: written by whoever adds an operator"
        for method in ("change", "at_layer")
        for operator in ("Ablate", "Add", "Apply", "Clamp", "Erase", "Intervention", "Replace", "Scale")
    },
    "analysis.features.Splice.change": "called by a run with what it bound",
    "analysis.features.Splice.at_layer": "called by a run, for operators with tensors per layer",
    "audiolens.Intervention": "refuses: a base class, which does nothing",
    **dict.fromkeys(
        (
            "audiolens.Directions.from_hub",
            "audiolens.Directions.push_to_hub",
            "analysis.study.from_hub",
            "analysis.study.push_to_hub",
            "analysis.study.Study.push_to_hub",
        ),
        "needs a hub: called in test_exchange.py and test_finished.py",
    ),
    **dict.fromkeys(
        ("analysis.trackers.to_mlflow", "analysis.trackers.to_tensorboard", "analysis.trackers.to_wandb"),
        "needs a tracker's package: called in test_rows.py",
    ),
    "audiolens.tracing.trace.SiteValue": "made by lens.site",
    "audiolens.tracing.trace.SiteValue.save": "refuses: a site is a place, and its value is saved",
    "audiolens.tracing.trace.SiteValue.value": "read inside the trace that AudioLens.trace opens here",
    "audiolens.AudioLens.position": "read inside the trace that AudioLens.trace opens here",
}
