"""Tables of clips with known effects, as a sweep would measure them, without a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis.layer_attribution import LayerAttribution, LayerEvidence
from analysis.patching import PatchingResult
from analysis.placement import Placement
from analysis.study import Settings, Study, scan, side_effects, test_result
from analysis.study.where import Where, WordWeights
from analysis.sweep import Condition, clips
from audiolens.directions.directions import Directions
from audiolens.directions.samples import Samples
from audiolens.directions.strategies import Strategy
from audiolens.model.provenance import Provenance
from audiolens.prompts import PromptSet, load

N_LAYERS = 8
RATE = 16_000


def directions(width: int = 32, seed: int = 0) -> Directions:
    """One random vector per block."""
    vectors = torch.randn(N_LAYERS, width, generator=torch.Generator().manual_seed(seed))
    vectors = vectors.cumsum(0)
    return Directions(
        vectors=vectors,
        layers=tuple(range(N_LAYERS)),
        residual_norms=torch.linspace(10, 30, N_LAYERS),
        meta=Provenance(model="planted", weights="0" * 16, n_layers=N_LAYERS, label="tempo"),
    )


def sampled(n_pairs: int = 12, width: int = 32, seed: int = 0) -> Directions:
    """The same directions, with samples from which they are the difference in means."""
    real = directions(width, seed)
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(N_LAYERS, 2 * n_pairs, width, generator=draw)
    labels = torch.arange(2 * n_pairs) < n_pairs
    samples = Samples(noise + labels[None, :, None] * real.vectors[:, None], labels, real.layers,
                      tuple(map(str, range(2 * n_pairs))))  # fmt: skip
    return replace(real, vectors=samples.difference(), samples=samples)


def tempo() -> PromptSet:
    return load("tempo")


def heard(
    conditions: Sequence[Condition],
    factor: Callable[[dict], float],
    *,
    prompts: Sequence[str],
    seeds: int = 4,
    noise: float = 0.1,
    failing: Callable[[dict], float] = lambda _: 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Clips whose tempo is 110 BPM x `factor(labels)`, prompts differing, of which a share `failing(labels)` fails."""
    rng = np.random.default_rng(seed)
    own = {prompt: rng.normal(0, 0.2) for prompt in prompts}
    paired = {clip: rng.normal(0, 0.2) for clip in clips(prompts, seeds)}
    rows = []
    for condition in conditions:
        labels = dict(condition.labels)
        for (prompt, clip_seed), offset in paired.items():
            size = np.log(factor(labels)) + (rng.normal(0, noise) if condition.name != "baseline" else 0)
            bpm = 110 * float(np.exp(own[prompt] + offset + size))
            rows.append(
                {
                    "condition": condition.name,
                    **labels,
                    "prompt": prompt,
                    "asked": prompt,
                    "seed": clip_seed,
                    "tempo_ioi": bpm,
                    "tempo": bpm,
                    "onset_rate": bpm / 30,
                    "pulse_clarity": 0.6,
                    "brightness": 1000 * float(np.exp(rng.normal(0, 0.1))),
                    "loudness": -20 + rng.normal(),
                    "pitch": 300 * float(np.exp(rng.normal(0, 0.1))),
                    "mode": 0.0,
                    "rms_ratio": 1.0,
                    "onsets": 10,
                    "entropy_ratio": 1.0,
                    "failed": bool(rng.random() < failing(labels)),
                }
            )
    return pd.DataFrame(rows)


def scanned(best: int = 3, **options: object) -> pd.DataFrame:
    """A scan in which steering works best at one block, and twice as strongly one-to-all."""
    sets = tempo()
    todo = scan.conditions(directions(), {"one-to-one": (1.0, 2.0), "one-to-all": (0.25, 0.5)})

    def factor(labels: dict) -> float:
        if labels["strategy"] is None:
            return 1.0
        amount = labels["strength"] * (2 if labels["strategy"] == "one-to-all" else 0.4)
        return float(np.exp(0.4 * amount * np.exp(-0.5 * (labels["layer"] - best) ** 2 / 2)))

    return heard(todo, factor, prompts=sets.development[:4], seeds=2, **options)  # type: ignore[arg-type]


def steered(
    choice: scan.Choice,
    alternatives: Sequence[scan.Choice],
    *,
    n_random: int = 5,
    n_shuffled: int = 0,
    others: Mapping[str, float] | None = None,
    **options: object,
) -> pd.DataFrame:
    """Test clips in which the real direction works and random ones do not.

    `others` maps other concepts to the effect of their direction, relative to that of the real one.
    """
    sets, also = tempo(), others or {}
    real = sampled() if n_shuffled else directions()
    drawn = {name: directions(seed=number + 1) for number, name in enumerate(also)}
    todo = test_result.conditions(real, sets, choice, alternatives)
    todo += test_result.control_conditions(real, choice, drawn, n_random=n_random, n_shuffled=n_shuffled)[1:]

    def factor(labels: dict) -> float:
        kind = labels["kind"]
        if kind == "other":
            return float(np.exp(0.4 * labels["strength"] / choice.strength * also[labels["other"]]))
        if kind in ("steered", "alternative"):
            return float(np.exp(0.4 * labels["strength"] / choice.strength * (0.5 if kind == "alternative" else 1)))
        if kind == "prompted":
            return 1.5 if labels["pole"] == sets.poles[0] else 0.65
        return 1.0

    return heard(todo, factor, prompts=sets.test[:8], **options)  # type: ignore[arg-type]


def _clicks(bpm: float) -> np.ndarray:
    """Two seconds of short tones at a tempo: "channel sample"."""
    seconds = np.arange(2 * RATE) / RATE
    return (0.4 * np.sin(2 * np.pi * 440 * seconds) * np.exp(-12 * (seconds % (60 / bpm))))[None].astype(np.float32)


def patched(by: Any, columns: Sequence[str], sites: Sequence[str]) -> PatchingResult:
    """A grid over eight pairs in which patching works at block 5, in the second column."""
    rng, pairs = np.random.default_rng(1), 8
    gap = 40 + rng.normal(0, 5, (pairs, 2))
    lost = rng.normal(-300, 10, (pairs, 2))
    share = 0.6 * np.exp(-0.5 * (np.arange(N_LAYERS) - 5) ** 2)[:, None] * (np.arange(len(columns)) == 1)
    effect = share * gap[..., None, None] + rng.normal(0, 0.5, (pairs, 2, N_LAYERS, len(columns)))
    prompts = tuple((f"a fast tune {i}", f"a slow tune {i}") for i in range(pairs))
    return PatchingResult(
        patched=lost[..., None, None] + effect, clean=lost + gap, corrupted=lost, codebooks=("0", "1"),
        layers=tuple(range(N_LAYERS)), columns=tuple(columns), spans=None, by=by, sites=tuple(sites),
        mode="denoising", metric="log-likelihood of the clean codes", unit="nats", scored=(0.0, 1.0),
        clusters=tuple(clean for clean, _ in prompts), prompts=prompts, n_bootstrap=200, n_permutations=200,
    )  # fmt: skip


def where() -> Where:
    """What was patched, where the concept enters through the cross-attention."""
    sites = ("attn_out", "cross_attn_out", "mlp_out", "resid_post")
    windows = patched("seconds", ["0.00-0.25", "0.25-0.50", "0.50-0.75"], ["resid_post"])
    relative = np.ones((4, N_LAYERS, 2))
    relative[0, 5] = 3.0
    tokens, differs = ("fast", "a", "tune", "</s>"), (True, False, False, False)
    words = WordWeights(relative, tokens, differs, (*range(N_LAYERS),), (0, 1))
    heads = patched("head", [str(head) for head in range(4)], ["cross_attn.z"])
    return Where(windows, patched("component", sites, sites), heads=heads, words=words)


def placed(strategy: Strategy = "one-to-one", layer: int = 3) -> Placement:
    """What evidence says of a concept whose words act at one block, of which some was read otherwise."""
    blocks = tuple(range(N_LAYERS))
    near = np.exp(-0.5 * (np.arange(N_LAYERS) - layer) ** 2 / 4)
    candidates = [
        {"strategy": name, "layer": block, "alignment": share * near[block], "low": share * near[block] - 0.1,
         "high": share * near[block] + 0.1, "gain": 0.8, "strength": 0.56}
        for name, share in (("one-to-one", 0.7), ("one-to-all", 0.6))
        for block in blocks
    ]  # fmt: skip
    evidence = [
        LayerEvidence("norm", "norm relative to the residual stream", blocks, near, *[np.full(N_LAYERS, np.nan)] * 2),
        LayerEvidence("patching", "nats", blocks, 40 * near, 40 * near - 5, 40 * near + 5),
    ]
    return Placement(
        concept="tempo", poles=tempo().poles, strategy=strategy, layer=layer, directions=directions(),
        candidates=pd.DataFrame(candidates), evidence=LayerAttribution(tuple(evidence)), by="alignment", certainty=0.9,
        n_prompts=8, row_steps=1000, at_strength=0.72, random=(0.1, -0.15),
    )  # fmt: skip


def study() -> Study:
    """A whole study of planted tables, with tones as its sounds."""
    from analysis import pca, similarity, sweep

    sets, rng = tempo(), np.random.default_rng(0)
    effects = sweep.effects(scanned(), "tempo_ioi", n_bootstrap=0)
    choice = scan.choose(effects)
    alternatives = (scan.choose(effects, "one-to-one" if choice.strategy == "one-to-all" else "one-to-all"),)
    clips_heard = steered(choice, alternatives)
    response = sweep.effects(clips_heard, "tempo_ioi", n_bootstrap=200)
    activations = rng.normal(size=(N_LAYERS, 40, 16))
    activations[:, :20, 0] += np.arange(N_LAYERS)[:, None]
    shown = clips_heard[clips_heard["kind"].isin(["baseline", "steered", "prompted"]) & (clips_heard["seed"] == 0)]
    keys = shown[["condition", "prompt", "seed"]].itertuples(index=False, name=None)
    scored = clips_heard[clips_heard["kind"].isin(side_effects.KINDS)][["condition", "prompt", "seed"]]
    scored = scored.assign(nats=rng.normal(2, 0.1, len(scored)), frechet=float("nan"))
    return Study(
        concept="tempo",
        poles=("fast", "slow"),
        measure="tempo_ioi",
        directions=directions(),
        cosines=similarity.cosine_map(directions()),
        components=pca.fit(activations, ["fast"] * 20 + ["slow"] * 20),
        scan=effects,
        choice=choice,
        alternatives=alternatives,
        response=response,
        outcomes=test_result.outcomes(response, sets.poles, choice),
        monotonicity=test_result.monotonicity(response),
        cross=test_result.cross_effects(clips_heard, n_bootstrap=200),
        clips=pd.concat([scanned(), clips_heard], ignore_index=True),
        sounds={key: _clicks(bpm=80 + 10 * place) for place, key in enumerate(keys)},
        settings=Settings(),
        model="planted",
        sample_rate=RATE,
        seconds={"directions": 4.0, "scan": 60.0, "dose-response": 80.0},
        where=where(),
        side_effects=side_effects.table(clips_heard, scored),
    )
