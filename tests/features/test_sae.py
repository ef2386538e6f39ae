"""Sparse autoencoders: their file format, what they refuse, training, and splicing them into the model."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import audiolens as al
from analysis import features, harvest, sweep
from analysis.features import described, source, training
from analysis.features.learning import Learner
from analysis.sweep import planned
from audiolens.errors import DamagedError, InputError, SiteError

PROMPTS = ["fast piano", "slow piano", "a fast song", "dark drums", "calm jazz"]
QUICK: dict[str, Any] = {
    "layer": 1, "width": 64, "k": 4, "n_vectors": 1200, "batch_size": 30, "held_out": 0.2, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="session")
def sae(lens: Any, codes: torch.Tensor) -> features.SAE:
    return features.train(lens, PROMPTS, codes=codes, **QUICK)


@pytest.fixture(scope="session")
def read(lens: Any, codes: torch.Tensor) -> Any:
    return lens.run_with_cache(PROMPTS, codes, sites="resid_post", layers=1)[1]


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu"])
def test_planted_sparse_features_are_recovered(kind: Any) -> None:
    """48 random directions in 24 dimensions, 3 active at a time: superposition, as in Elhage et al. 2022."""
    drawn = torch.Generator().manual_seed(0)
    true = torch.randn(48, 24, generator=drawn)
    true /= true.norm(dim=-1, keepdim=True)
    active = torch.rand(20_000, 48, generator=drawn) < 3 / 48
    x = (active * (0.5 + torch.rand(active.shape, generator=drawn))) @ true + 5.0
    learner = Learner.begin(kind, 3, 72, 3e-3, 120_000, x[:4096], 0)
    while learner.seen < learner.n_vectors:
        learner.learn(x[torch.randint(len(x), (512,), generator=drawn)])
    sae = learner.sae()
    best = (true @ sae.W_dec.T).amax(1)
    assert (best >= 0.9).float().mean() >= 0.9
    assert (sae.encode(x[:2000]) > 0).float().sum(-1).mean() == pytest.approx(3, abs=0.6)
    assert torch.allclose(sae.W_dec.norm(dim=-1), torch.ones(72), atol=1e-5)


def test_a_killed_training_goes_on_to_the_same_sae(
    lens: Any, codes: torch.Tensor, sae: features.SAE, tmp_path: Path, monkeypatch: Any
) -> None:
    asked = {**QUICK, "codes": codes, "out": tmp_path / "sae", "checkpoint_every": 7}
    learn, steps = Learner.learn, []

    def killed(self: Learner, vectors: torch.Tensor) -> Any:
        if len(steps) == 17:
            raise MemoryError("killed")
        steps.append(self.step)
        return learn(self, vectors)

    monkeypatch.setattr(Learner, "learn", killed)
    with pytest.raises(MemoryError):
        features.train(lens, PROMPTS, **asked)
    steps[:] = [-1]
    monkeypatch.setattr(Learner, "learn", lambda self, x: steps.append(self.step) or learn(self, x))
    resumed = features.train(lens, PROMPTS, **asked)
    assert steps[1] == 14
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(resumed, name), getattr(sae, name)), name
    assert resumed.scores == pytest.approx(sae.scores)
    assert len({(tmp_path / "sae" / name).stat().st_mode for name in ("cfg.json", "sae_weights.safetensors")}) == 1
    steps.clear()
    assert features.train(lens, PROMPTS, **asked).scores == resumed.scores
    assert not steps
    with pytest.raises(InputError, match="it was begun with k=4, but this one has 5"):
        features.train(lens, PROMPTS, **{**asked, "k": 5})


def test_a_run_with_other_settings_is_refused_before_clips_are_generated(
    lens: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    asked: dict[str, Any] = {**QUICK, "n_vectors": 60, "seconds": 0.4, "out": tmp_path / "sae"}
    features.train(lens, PROMPTS, **asked)
    read = {**asked, "reading_batch": 3}
    monkeypatch.setattr(type(lens), "generate", None)
    with pytest.raises(InputError, match="it was begun with k=4, but this one has 5"):
        features.train(lens, PROMPTS, **{**asked, "k": 5})
    with pytest.raises(InputError, match="at most half"):
        features.train(lens, PROMPTS, **{**asked, "k": 40})
    monkeypatch.undo()
    # Four training clips are read in two groups of 3 and 1, or of 2 and 2, whose batches differ.
    features.train(lens, PROMPTS, **{**read, "out": tmp_path / "groups"})
    with pytest.raises(InputError, match="read in other groups, by another reading_batch"):
        features.train(lens, PROMPTS, **{**read, "out": tmp_path / "groups", "reading_batch": 2})


def test_a_run_of_a_version_that_did_not_state_its_order_is_resumed() -> None:
    facts = {"format": "a", "source": {"units": 2, "order": "x"}, "settings": {"k": 3}}
    assert described.difference({**facts, "source": {"units": 2}}, facts) is None
    assert described.difference({**facts, "source": {"units": 3}}, facts) == (
        "it was begun with units 3, but this one has 2"
    )


def test_ctrl_c_waits_for_the_end_of_a_step(lens: Any, codes: torch.Tensor, tmp_path: Path, monkeypatch: Any) -> None:
    """A state in the middle of a step would be resumed to another SAE."""
    whole = features.train(lens, PROMPTS, codes=codes, **{**QUICK, "n_vectors": 300})
    move = Learner._move

    def interrupted(self: Learner, loss: torch.Tensor) -> None:
        move(self, loss)
        if self.step == 4:
            # The weights have moved, and the counters have not.
            signal.raise_signal(signal.SIGINT)

    asked = {**QUICK, "codes": codes, "n_vectors": 300, "out": tmp_path / "sae"}
    # A shell that starts the tests in the background lets them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Learner, "_move", interrupted)
            with pytest.raises(KeyboardInterrupt):
                features.train(lens, PROMPTS, **asked)
    finally:
        signal.signal(signal.SIGINT, before)
    resumed = features.train(lens, PROMPTS, **asked)
    assert torch.equal(resumed.W_enc, whole.W_enc)


def test_weights_that_are_not_finite_stop_the_training_and_are_not_kept(
    lens: Any, codes: torch.Tensor, tmp_path: Path, monkeypatch: Any
) -> None:
    learn = Learner.learn
    monkeypatch.setattr(Learner, "learn", lambda self, x: learn(self, x * (torch.nan if self.step == 9 else 1)))
    asked: dict[str, Any] = {**QUICK, "codes": codes, "checkpoint_every": 5, "out": tmp_path / "sae"}
    with pytest.raises(InputError, match=r"after 10 steps: give a smaller learning_rate than 0.001"):
        features.train(lens, PROMPTS, **asked)
    monkeypatch.undo()
    assert features.train(lens, PROMPTS, **asked).W_enc.isfinite().all()
    for x, told in ((torch.full((9, 4), torch.inf), "NaN or infinite"), (torch.full((9, 4), 0.1), "are alike")):
        with pytest.raises(InputError, match=told):
            Learner.begin("topk", 1, 8, 1e-3, 100, x, 0)


def test_what_stands_for_all_clips_is_taken_from_all_of_them(lens: Any, monkeypatch: Any) -> None:
    """Prompts are often listed pole by pole."""
    assert source.spread(5, 64) == [0, 1, 2, 3, 4]
    assert source.spread(9, 3) == [0, 4, 8]
    assert source.spread(0, 4) == []
    scored: list[Any] = []
    monkeypatch.setattr(training, "_SCORED", 2)
    monkeypatch.setattr(training, "score", lambda _lens, _sae, prompts, *_a, **_b: scored.extend(prompts) or _Scored())
    prompts = [f"{pole} {thing}" for pole in ("fast", "slow") for thing in ("piano", "song", "drums", "jazz", "music")]
    codes = torch.randint(0, 32, (10, 4, 15), generator=torch.Generator().manual_seed(1))
    features.train(lens, prompts, codes=codes, **{**QUICK, "n_vectors": 60, "held_out": 0.6})
    assert {prompt.split()[0] for prompt in scored} == {"fast", "slow"}


class _Scored:
    def as_dict(self) -> dict[str, float]:
        return {}


def test_clips_without_a_prompt_are_held_out_one_by_one() -> None:
    train, held = source.split([None] * 40 + [f"prompt {row}" for row in range(9)], 0.2, 0)
    assert len(held) == 10
    assert len(train) == 39


def test_a_harvest_is_trained_on_as_the_lens_is(lens: Any, codes: torch.Tensor, tmp_path: Path) -> None:
    kept = harvest.harvest(lens, PROMPTS, codes=codes, layers=[1], out=tmp_path / "h", progress=False)
    found = features.train(lens, kept, **{**QUICK, "n_vectors": 300})
    assert found.meta is not None
    assert (found.layer, found.meta.source, found.scores["n_clips"]) == (1, "codes", 1)


def test_the_files_are_those_of_saelens_and_come_back(sae: features.SAE, lens: Any, read: Any, tmp_path: Path) -> None:
    """What SAELens 6.54 reads and writes, as it was compared by hand: names, orientation and settings."""
    folder = sae.save(tmp_path / "sae")
    facts, tensors = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    settings = {name: value for name, value in facts.items() if name != "metadata"}
    assert settings == {
        "architecture": "topk", "d_in": 48, "d_sae": 64, "k": 4, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }  # fmt: skip
    assert facts["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    # Without a version from 6.0 on, SAELens drops the metadata.
    assert facts["metadata"]["sae_lens_version"] == "6.0.0"
    assert {name: tuple(one.shape) for name, one in tensors.items()} == {
        "W_enc": (48, 64), "b_enc": (64,), "W_dec": (64, 48), "b_dec": (48,),
    }  # fmt: skip
    x = read["resid_post", 1]
    pre = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    expected = torch.where(pre >= pre.topk(4).values[..., -1:], pre.relu(), 0)
    again = features.load(folder, lens=lens)
    assert torch.allclose(again.encode(read), expected)
    assert torch.allclose(again(x), expected @ tensors["W_dec"] + tensors["b_dec"], atol=1e-5)
    assert again.meta == sae.meta
    assert again.scores == sae.scores


def test_a_file_of_another_program_is_read(lens: Any, read: Any, tmp_path: Path) -> None:
    """SAELens rescales latents by the norms of its decoder, and chooses the top k after that."""
    drawn = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(*shape, generator=drawn) for name, shape in
               {"W_enc": (48, 20), "b_enc": (20,), "W_dec": (20, 48), "b_dec": (48,)}.items()}  # fmt: skip
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    facts = {"architecture": "topk", "d_in": 48, "d_sae": 20, "k": 3, "rescale_acts_by_decoder_norm": True,
             "apply_b_dec_to_input": True, "metadata": {"hook_name": "decoder.layers.1"}}  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="give site= and layer="):
        features.load(tmp_path)
    found = features.load(tmp_path, site="resid_post", layer=1, lens=lens)
    x, norms = read["resid_post", 1], tensors["W_dec"].norm(dim=-1)
    pre = ((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]) * norms
    z = torch.where(pre >= pre.topk(3).values[..., -1:], pre.relu(), 0)
    assert torch.allclose(found(x), (z / norms) @ tensors["W_dec"] + tensors["b_dec"], atol=1e-3)
    assert found.directions([2, 5]).meta.n_layers == 3


def test_a_foreign_or_damaged_sae_is_refused_in_one_line(
    sae: features.SAE, lens: Any, melody_lens: Any, tmp_path: Path
) -> None:
    folder = sae.save(tmp_path / "sae")
    with pytest.raises(InputError, match="train one on this model"):
        features.load(folder, lens=melody_lens)
    for elsewhere in ({"layer": 2}, {"site": "mlp_out", "layer": 1}):
        with pytest.raises(InputError, match=r"reads blocks.1.hook_resid_post: leave out site= and layer="):
            features.load(folder, **elsewhere)
    assert features.load(folder, site="resid_post").name == sae.name
    with pytest.raises(InputError, match="was read from|were read from"):
        melody_lens.run_with_interventions(PROMPTS, torch.zeros(5, 4, 15).long(), features.splice(sae))
    facts = json.loads((folder / "cfg.json").read_text())
    weights = (folder / "sae_weights.safetensors").read_bytes()
    (folder / "sae_weights.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(DamagedError, match="sae_weights"):
        features.load(folder)
    del facts["metadata"]["audiolens"]
    for change, words in (
        ({"d_in": 47}, "d_in=47"),
        ({"architecture": "gated"}, "gated.*expected topk"),
        ({"metadata": {"model_name": "facebook/musicgen-large", **facts["metadata"], "x": 1}}, None),
        ({"metadata": {**facts["metadata"], "model_name": "facebook/musicgen-large"}}, "musicgen-large"),
        (
            {"metadata": {**facts["metadata"], "hook_name": "blocks.1.mlp.hook_post"}},
            "reads 48 features, but .* has 96",
        ),
        ({"metadata": {**facts["metadata"], "hook_name": "blocks.7.hook_resid_post"}}, "layer 7 does not exist"),
        ({"normalize_activations": "layer_norm"}, "layer_norm.*not supported"),
    ):
        (folder / "cfg.json").write_text(json.dumps({**facts, **change}))
        if words is None:
            features.load(folder)
            continue
        with pytest.raises(InputError, match=words) as refused:
            features.load(folder, lens=lens)
        assert "\n" not in str(refused.value)
    with pytest.raises(SiteError, match="one vector per step"):
        features.train(lens, PROMPTS, site="attn.pattern", layer=1)
    with pytest.raises(InputError, match="at most half"):
        features.train(lens, PROMPTS, codes=torch.zeros(5, 4, 15).long(), layer=1, width=8, k=5, progress=False)


def test_splicing_equals_the_reconstruction_and_edits_only_what_it_names(
    sae: features.SAE, lens: Any, read: Any, codes: torch.Tensor
) -> None:
    x = read["resid_post", 1]

    def spliced(*edits: Any) -> torch.Tensor:
        return lens.run_with_cache(PROMPTS, codes, sites="resid_post", layers=1, interventions=edits)[1][
            "resid_post", 1
        ]

    assert torch.allclose(spliced(features.splice(sae)), sae(x), atol=1e-4)
    z = sae.encode(x)
    often = int((z > 0).sum((0, 1)).argmax())
    gone = spliced(features.splice(sae, ablate=often))
    assert torch.allclose(gone, x - z[..., often, None] * sae.W_dec[often], atol=1e-4)
    silent = z[..., often] == 0
    assert torch.equal(gone[silent], x[silent])
    clamped = spliced(features.splice(sae, clamp={often: 2.0}, strength=0.5, seconds=(0.0, 0.2)))
    target = x + 0.5 * (2.0 - z[..., often, None]) * sae.W_dec[often]
    assert torch.allclose(clamped[:, :5], target[:, :5], atol=1e-4)
    assert torch.equal(clamped[:, 5:], x[:, 5:])
    doubled = spliced(al.Add(2 * sae.directions(often)[1], layers=[1]))
    assert torch.allclose(doubled, x + 2 * sae.W_dec[often], atol=1e-4)


def test_latents_are_directions_like_others(sae: features.SAE, lens: Any, codes: torch.Tensor) -> None:
    latent = sae.directions(3)
    read = al.difference_in_means(lens, PROMPTS[:2], PROMPTS[2:4], codes=codes[:2], layers=[1], progress=False)
    expected = torch.cosine_similarity(read[1], sae.W_dec[3], dim=0)
    assert torch.allclose(read.cosine(latent), expected)
    # At a site with heads, a latent adds one vector per head.
    heads = features.train(lens, PROMPTS, codes=codes, site="attn.z", **{**QUICK, "n_vectors": 60})
    steps = al.steer(heads.directions(3), layer=1, strength=2.0)
    found, plain = (
        lens.run_with_cache(PROMPTS, codes, sites="attn.z", layers=1, interventions=edits)[1]["attn.z", 1].flatten(2)
        for edits in (steps, ())
    )
    assert torch.allclose(found - plain, (2 * heads.W_dec[3]).expand_as(plain), atol=1e-5)


def test_nothing_to_lose_gives_no_share_of_it() -> None:
    found = features.Scores(0.5, 3.0, 0.0, 1, 9, loss=2.0, spliced=2.0, zero=2.0, mean=2.0)
    assert np.isnan([found.loss_recovered, found.loss_recovered_of_mean]).all()


def test_a_sweep_tells_splices_apart_also_after_their_use(sae: features.SAE) -> None:
    other = features.SAE(sae.W_enc, sae.b_enc + 1, sae.W_dec, sae.b_dec, "topk", layer=1, k=4)
    edits = [features.splice(sae, ablate=3), features.splice(sae, ablate=4), features.splice(other, ablate=3)]

    def hashes() -> list[str]:
        return [planned.condition_hash(sweep.Condition("edit", (edit,)), np.arange(5) / 25) for edit in edits]

    before = hashes()
    edits[0].change(torch.ones(1, 1, 48), torch.ones(()), {})
    assert hashes() == before
    assert len(set(before)) == 3


def test_both_engines_generate_the_same_clips_with_a_latent_clamped(sae: features.SAE, lens: Any) -> None:
    asked: dict[str, Any] = {"seconds": 0.4, "seeds": [0, 1], "decode": False}
    edit = features.splice(sae, clamp={3: 30.0}, branch="cond")
    exact, fast = (lens.generate(PROMPTS[:2], interventions=edit, engine=name, **asked) for name in ("exact", "fast"))
    assert torch.equal(exact.codes, fast.codes)
    assert not torch.equal(exact.codes, lens.generate(PROMPTS[:2], **asked).codes)


def test_scores_follow_from_plain_runs(sae: features.SAE, lens: Any, read: Any, codes: torch.Tensor) -> None:
    found = features.score(lens, sae, PROMPTS, codes, batch_size=2)
    x = read["resid_post", 1].flatten(0, 1)
    error = (x - sae(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert found.explained_variance == pytest.approx(float(1 - error), abs=1e-4)
    assert found.l0 == pytest.approx(float((sae.encode(x) > 0).sum(-1).float().mean()))
    zero = al.Replace(torch.zeros(48), layers=[1])
    for edits, value in (((), found.loss), (features.splice(sae), found.spliced), (zero, found.zero)):
        logits = lens.run_with_interventions(PROMPTS, codes, edits)
        nats = [
            -torch.log_softmax(logits[:, book, book : book + 15], -1).gather(-1, codes[:, book, :, None]).mean()
            for book in range(4)
        ]
        assert float(torch.stack(nats).mean()) == pytest.approx(value, abs=1e-4)
