"""torch's global defaults belong to the caller: another default dtype or device changes no bit of any result."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import audiolens as al
from analysis import attention, attribution, logit_lens, patching, pca, probing, similarity
from analysis.attribution import logits as direct

PROMPTS = ["fast piano", "slow dark guitar music", "calm"]
ALIKE = ["fast", "slow", "calm"]
SECONDS = 0.6
CLEAN, CORRUPTED = ["fast", "bright", "loud"], ["slow", "dark", "soft"]


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


def given(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Numbers that no default of torch's decides."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def numbers(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 32, shape))


CODES = numbers((3, 4, 15))
VECTOR, EACH = given((48,)), given((3, 48))
EDITS: dict[str, Callable[[], Any]] = {
    "add": lambda: al.Add(VECTOR, strength=0.3, layers=[1], seconds=(0.04, 0.2)),
    "add, one a row": lambda: al.Add(EACH, strength=[0.1, 0.3, 0.7], schedule=lambda seconds: 1 - seconds),
    "add, a list": lambda: al.Add(VECTOR.tolist(), strength=0.1, preserve_norm=True),
    "ablate": lambda: al.Ablate(VECTOR.numpy(), strength=0.7, rows=[2, 0]),
    "clamp": lambda: al.Clamp(VECTOR, 0.3),
    "scale": lambda: al.Scale(0.3, site="attn.z", heads=[1]),
    "replace": lambda: al.Replace(0.1 * EACH, layers=2, rows=[0, 1, 2], branch="cond"),
    "apply": lambda: al.Apply(lambda value: value * 1.5, site="mlp_out"),
    "schedule, a list": lambda: al.Add(VECTOR, schedule=[0.1 * place for place in range(15)]),
}


def directions(lens: Any) -> al.Directions:
    return al.difference_in_means(
        lens, ["fast", "bright", "loud", "jazz"], ["slow", "dark", "soft", "calm"], seconds=0.2, progress=False
    )


def recorded(cache: al.ActivationCache) -> list[torch.Tensor]:
    return [*(cache[name] for name in cache), *cache.norms.values()]


def generated(lens: Any, **options: Any) -> Any:
    out = lens.generate(ALIKE, SECONDS, **{"seeds": [1, 2, 3], **options})
    return [out.codes, out.audio, *([] if out.cache is None else recorded(out.cache))]


def traced(lens: Any) -> Any:
    import nnsight

    with lens.trace(ALIKE, codes=CODES, guidance_scale=3.0) as tracer:
        place = lens.site("blocks.1.hook_resid_post")
        place.value = place.value * 1.5
        logits = nnsight.save(tracer.result)
    with lens.trace(ALIKE, fn="generate", seconds=SECONDS, seeds=[1, 2, 3]) as tracer:
        codes = nnsight.save(tracer.result)
    return [logits.detach(), codes]


def cached(lens: Any, **options: Any) -> Any:
    logits, cache = lens.run_with_cache(ALIKE, CODES, **options)
    return [logits, *recorded(cache)]


def read(lens: Any) -> Any:
    _, cache = lens.run_with_cache(
        ALIKE, CODES, sites=["resid_pre", "attn_out", "mlp_out", "cross_attn_out", "resid_post"]
    )
    cache.save(Path(lens.tmp) / "cache.safetensors")
    again = al.ActivationCache.load(Path(lens.tmp) / "cache.safetensors")
    return [
        *recorded(again),
        cache.rows([2, 0])["resid_post", 1],
        cache.project(VECTOR),
        cache.decompose_resid().values,
        cache.logit_lens(layers=1)[0],
    ]


def stored(lens: Any) -> Any:
    folder = Path(lens.tmp)
    d = directions(lens)
    d.save(folder / "d.safetensors")
    again = al.Directions.load(folder / "d.safetensors", lens=lens)
    return [d.vectors, again.vectors, again.norms, d.random_like(3).vectors, d.to_frame(), d.unit().vectors,
            (0.3 * d).vectors, d.orthogonal_to(d.random_like(1)).vectors]  # fmt: skip


def scored(lens: Any) -> Any:
    out = lens.generate(ALIKE, SECONDS, seeds=[1, 2, 3], interventions=al.Add(VECTOR, strength=0.5), decode=False)
    drift = al.measure.drift(lens, out)
    return [drift.nats, drift.level, drift.outside, al.measure.code_nats(lens, ALIKE, CODES)]


def patched(lens: Any, **options: Any) -> Any:
    found = patching.patch(lens, CLEAN, CORRUPTED, CODES, progress=False, **options)
    return [found.patched, found.clean, found.corrupted]


def attributed(lens: Any) -> Any:
    found = attribution.attribute(lens, CLEAN, CORRUPTED, CODES, check=2, check_pairs=2, progress=False)
    assert found.agreement is not None
    return [found.to_frame(), found.agreement.cells]


def attended(lens: Any) -> Any:
    lag = attention.by_lag(lens, ALIKE, CODES, beat_seconds=[0.12, 0.16, 0.2], n_permutations=9)
    ablated = attention.ablate(lens, ALIKE, CODES, layers=[1], heads=[0, 2])
    return [attention.to_text(lens, ALIKE, CODES).weights, lag.scores, lag.p, ablated.changes]


def heard(lens: Any) -> Any:
    sound = np.random.default_rng(0).normal(size=(3, 1, 9600)).astype(np.float32) * 0.1
    audio = lens.decode_codes(CODES)
    codes = [lens.encode_audio(sound, rate) for rate in (16000, 22050)]
    features = al.measure.codec_features(lens, CODES, window_seconds=0.2)
    return [*codes, audio, al.measure.brightness(audio, 16000), features]


def compared(lens: Any) -> Any:
    d = directions(lens)
    _, cache = lens.run_with_cache(["fast", "slow", "bright"] * 5, numbers((15, 4, 15)), reduce="mean")
    rows = cache.stack("resid_post").numpy()
    fit = pca.fit(rows, ["a", "b", "c"] * 5)
    probe = probing.probe(None, rows, ["a", "b", "c"] * 5, n_shuffles=2, n_bootstrap=0)
    return [similarity.cosine_map(d).cosines, fit.to_frame(), probe.to_frame()]


def lenses(lens: Any) -> Any:
    found, listened = (
        logit_lens.read(lens, ALIKE, CODES),
        logit_lens.listen(lens, ALIKE, CODES, seeds=[1, 2, 3], top_k=8),
    )
    return [found.ranks, found.probabilities, *(clips.codes for clips in listened.clips.values()),
            direct.direct(lens, ALIKE, CODES).values]  # fmt: skip


VERBS: dict[str, Callable[[Any], Any]] = {
    "generate": generated,
    "generate, no prompt": lambda lens: generated(lens, seeds=[3, 3, 3], guidance_scale=1.0, top_k=5),
    "generate, exact": lambda lens: generated(lens, exact=True, temperature=0.7),
    "generate, mixed prompts": lambda lens: [
        lens.generate([None, "calm", "slow dark guitar"], SECONDS, seeds=[1, 2, 3], sites="attn.pattern").codes
    ],
    "generate, recorded": lambda lens: generated(lens, sites=["resid_post", "attn.z"], reduce="mean", batch_size=2),
    "generate, recorded heads": lambda lens: generated(lens, sites=["attn.pattern", "attn.result"], heads=[2]),
    "generate, continued": lambda lens: generated(lens, audio_prompt=CODES[..., :5]),
    "generate, changed": lambda lens: generated(lens, interventions=[make() for make in EDITS.values()]),
    **{
        f"run, {name}": lambda lens, make=make: cached(lens, interventions=make()) for name, make in EDITS.items()
    },
    "run_with_cache": lambda lens: cached(lens, sites=list(lens.sites()), guidance_scale=3.0, branch="both"),
    "the start token alone": lambda lens: recorded(lens.run_with_cache([None, "calm"])[1]),
    "trace": traced,
    "cache": read,
    "directions": stored,
    "likelihood": scored,
    "patch": patched,
    "patch, heads": lambda lens: patched(lens, by="head"),
    "patch, tokens": lambda lens: patched(lens, by="token"),
    "attribute": attributed,
    "attention": attended,
    "sound": heard,
    "rows of activations": compared,
    "logit lens": lenses,
    "weights": lambda lens: [lens.W_Q[1], lens.W_O_cross[2], lens.W_U[0], lens.W_pos],
}  # fmt: skip


def alike(one: Any, other: Any) -> None:
    if isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            alike(a, b)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.device == other.device
        assert torch.equal(one.nan_to_num(7.0) if one.is_floating_point() else one,
                           other.nan_to_num(7.0) if other.is_floating_point() else other)  # fmt: skip
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


@pytest.fixture(scope="module")
def usual(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    lens.tmp = tmp_path_factory.mktemp("stored")
    return {}


@pytest.mark.parametrize("what", VERBS)
@pytest.mark.parametrize(
    ("dtype", "device"),
    [(torch.float64, "cpu"), (torch.bfloat16, "meta")],
    ids=["float64", "bfloat16-meta"],
)
def test_no_bit_changes(lens: Any, usual: dict[str, Any], what: str, dtype: torch.dtype, device: str) -> None:
    if what not in usual:
        usual[what] = VERBS[what](lens)
    with defaults(dtype, device):
        found = VERBS[what](lens)
    alike(found, usual[what])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["lens", "melody_lens"])
def test_a_model_opens_with_the_same_weights_on_the_same_device(request: Any, name: str, dtype: torch.dtype) -> None:
    lens = request.getfixturevalue(name)
    with defaults(dtype, "meta"):
        opened = al.AudioLens.from_pretrained(lens.name)
        assert torch.get_default_dtype() == dtype
        assert torch.get_default_device().type == "meta"
        again = al.AudioLens(opened.model, opened.tokenizer)
    assert (opened.dtype, opened.device) == (lens.dtype, lens.device)
    alike([*opened.model.state_dict().values()], [*lens.model.state_dict().values()])
    alike(opened.W_pos, lens.W_pos)
    alike(again.generate("calm", 0.2, seeds=0).codes, lens.generate("calm", 0.2, seeds=0).codes)


def test_a_function_of_the_callers_meets_their_own_default(lens: Any) -> None:
    seen = []

    def look(value: torch.Tensor) -> None:
        seen.append(torch.zeros(1).dtype)

    with defaults(torch.float64, "cpu"):
        lens.generate("calm", 0.2, seeds=0, interventions=al.Apply(look, layers=[1]), decode=False)
    assert set(seen) == {torch.float64}
