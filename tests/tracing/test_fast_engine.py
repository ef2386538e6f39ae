"""The fast engine gives the clips, recordings and errors of the exact one, at every site and with every operator."""

import gc
import threading
from typing import Any

import pytest
import torch
from everywhere import IN_BLOCK, WHOLE
from torch import Tensor, nn

import audiolens as al
from analysis import patching
from audiolens.errors import AudioLensError, InputError
from audiolens.model import plain_decoder
from audiolens.model.plain_decoder import PlainDecoder
from audiolens.tracing import engines, fast_clips

PROMPTS = ["fast piano", "slow dark guitar music", "calm", None, "fast bright guitar"]
SECONDS = 0.4
FIXTURES = ("lens", "stereo_lens", "melody_lens", "stereo_melody_lens")


@pytest.fixture(scope="module", params=FIXTURES)
def any_lens(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def both(lens: Any, prompts: Any = PROMPTS, seconds: float = SECONDS, **kwargs: Any) -> tuple[Any, Any]:
    """The same generation by the exact and the fast engine."""
    seeds = kwargs.pop("seeds", list(range(len(prompts))))
    exact, fast = (
        lens.generate(prompts, seconds, seeds=seeds, decode=False, engine=engine, **kwargs)
        for engine in ("exact", "fast")
    )
    assert (exact.settings["engine"], fast.settings["engine"]) == ("exact", "fast")
    return exact, fast


def same(exact: Any, fast: Any) -> None:
    assert torch.equal(exact.codes, fast.codes)
    assert (exact.cache is None) == (fast.cache is None)
    for site in exact.cache or ():
        torch.testing.assert_close(fast.cache[site], exact.cache[site], atol=2e-5, rtol=1e-4)


def sites_of(lens: Any) -> list[str]:
    known = {site.short for site in lens.find_sites(list(lens.sites()))}
    return [site for site in (*IN_BLOCK, *WHOLE) if site in known]


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_clips_are_equal_without_interventions(any_lens: Any, guidance: float, rows: int) -> None:
    same(*both(any_lens, PROMPTS[:rows], guidance_scale=guidance))


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.7, "top_k": 3}, {"top_k": None}])
def test_clips_are_equal_for_all_sampling_settings(lens: Any, settings: dict[str, Any]) -> None:
    same(*both(lens, **settings))


@pytest.mark.parametrize("exact", [False, True])
def test_clips_are_equal_in_any_batches(any_lens: Any, exact: bool) -> None:
    same(*both(any_lens, exact=exact, batch_size=None if exact else 2))


def test_everything_recorded_is_equal(any_lens: Any) -> None:
    """All sites in one run, so that each is also read next to all others."""
    same(*both(any_lens, sites=sites_of(any_lens), branch="both"))


@pytest.mark.parametrize("reduce", ["mean", "max", "last"])
def test_reduced_recordings_of_some_heads_are_equal(lens: Any, reduce: str) -> None:
    wanted = ["attn.z", "attn.pattern", "attn.result", "cross_attn.pattern", "cross_attn.result", "cross_attn.k"]
    same(*both(lens, sites=wanted, heads=[2, 0], reduce=reduce, span=(0.12, 0.32)))


def operators(lens: Any, site: str) -> list[Any]:
    """Every operator at a site, each in a row of its own, over a part of the clip where the site has steps."""
    (found,) = lens.find_sites(site, [1] if site in IN_BLOCK else None)
    sizes = {
        "d_model": lens.config.d_model, "d_mlp": lens.config.d_mlp, "d_head": lens.config.d_head,
        "vocab": lens.config.vocab_size,
    }  # fmt: skip
    where: dict[str, Any] = {"site": site, "layers": None if found.layer is None else [1]}
    timed: dict[str, Any] = {}
    if "step" in found.axes or "query" in found.axes:
        where |= {"seconds": (0.08, 0.2)}
        timed = {"schedule": lambda t: 1 + t}
    edits = [al.Scale(0.3, rows=[0], **where), al.Apply(lambda value: value * 0.7, rows=[1], **where)]
    if (size := sizes.get(found.axes[-1])) is not None:
        vector = torch.randn(size, generator=torch.Generator().manual_seed(len(site)))
        edits += [
            al.Add(vector, rows=[2, 3], branch="cond", strength=[3.0, -2.0], **where, **timed),
            al.Ablate(vector, rows=[4], **where, **timed),
            al.Clamp(vector, 2.0, rows=[5], **where),
            al.Replace(vector, rows=[6], **where),
        ]
    return edits


EDITED: dict[str, Any] = {"prompts": ["slow dark guitar"] * 7, "seconds": 0.24, "seeds": list(range(7))}


@pytest.fixture(scope="module")
def unedited(any_lens: Any) -> Tensor:
    """The logits of the clips that are edited at every site."""
    return any_lens.generate(**EDITED, decode=False, sites="logits", engine="fast").cache["hook_logits"]


@pytest.mark.parametrize("site", [*IN_BLOCK, *WHOLE])
def test_edits_at_every_site_are_equal(any_lens: Any, unedited: Tensor, site: str) -> None:
    if site not in sites_of(any_lens):
        pytest.skip("this family does not have the site")
    edits = operators(any_lens, site)
    exact, fast = both(any_lens, **EDITED, interventions=edits, sites=[site, "logits"])
    same(exact, fast)
    moved = (fast.cache["hook_logits"] != unedited).flatten(1).any(1)
    assert moved.tolist() == [True, True, *[len(edits) > 2] * 5]


def test_edits_of_heads_norms_and_the_null_half_are_equal(lens: Any) -> None:
    vector = torch.randn(lens.config.d_model)
    edits = [
        al.Scale(4.0, site="attn.z", heads=[1], branch="null"),
        al.Scale(0.2, site="cross_attn.pattern", heads=[0, 2]),
        al.Add(vector, layers=[0, 2], strength=9.0, preserve_norm=True),
        al.Add(vector, site="cross_attn_out", branch="null", strength=5.0),
    ]
    same(*both(lens, interventions=edits, sites="cross_attn_out", branch="both"))


def test_a_prefix_is_edited_and_recorded_alike(melody_lens: Any) -> None:
    vector = torch.randn(melody_lens.config.d_model)
    edit = al.Add(vector, layers=[1], strength=4.0, prefix=True)
    same(*both(melody_lens, interventions=edit, sites=["resid_post", "attn.pattern"], prefix=True))


@pytest.mark.parametrize("frames", [1, 3, 9])
def test_continued_clips_are_equal(any_lens: Any, frames: int) -> None:
    start = torch.randint(0, 32, (5, any_lens.config.n_codebooks, frames), generator=torch.Generator().manual_seed(1))
    edit = al.Add(torch.ones(any_lens.config.d_model), layers=[1], strength=3.0, seconds=(0.12, 0.3))
    exact, fast = both(any_lens, audio_prompt=start, interventions=edit, sites=["resid_post", "attn.pattern"])
    same(exact, fast)
    assert torch.equal(fast.codes[..., :frames], start)


def test_forbidden_codes_are_never_drawn(lens: Any) -> None:
    def forbid(logits: Tensor) -> Tensor:
        logits[..., 5:] = -torch.inf
        return logits

    exact, fast = both(lens, interventions=al.Apply(forbid, site="logits", branch="cond"))
    same(exact, fast)
    assert int(fast.codes.max()) < 5


def test_errors_during_a_run_are_the_same(lens: Any) -> None:
    def nothing_left(logits: Tensor) -> Tensor:
        return torch.full_like(logits, -torch.inf)

    def blows(value: Tensor) -> Tensor:
        return value * torch.inf

    for edit in (
        al.Apply(nothing_left, site="logits", rows=[2], seconds=(0.12, 0.32)),
        al.Apply(blows, layers=[1], rows=[1], seconds=(0.12, 0.32)),
        al.Add(torch.full((lens.config.d_model,), 3e38), layers=[0], rows=[3], strength=1e3),
    ):
        messages = []
        for engine in ("exact", "fast"):
            with pytest.raises(AudioLensError) as caught:
                lens.generate(PROMPTS, SECONDS, seeds=1, decode=False, engine=engine, interventions=edit)
            messages.append(f"{type(caught.value).__name__}: {caught.value}")
        assert messages[0] == messages[1]


def test_eager_attention_is_equal(checkpoint: Any) -> None:
    from transformers import AutoTokenizer, MusicgenForConditionalGeneration

    model = MusicgenForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="eager").eval()
    lens = al.AudioLens(model, AutoTokenizer.from_pretrained(checkpoint))
    edit = al.Scale(3.0, site="text_states")
    same(*both(lens, interventions=edit, sites=["cross_attn.z", "attn.pattern"], branch="both"))


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        ("float64", {}),
        ("bfloat16", {}),
        ("bfloat16", {"temperature": 0.01}),
        ("bfloat16", {"guidance_scale": 10.0}),
        ("float16", {"temperature": 1e-5}),
    ],
)
def test_codes_are_drawn_in_float32_in_every_dtype(checkpoint: Any, dtype: str, settings: dict[str, Any]) -> None:
    lens = al.AudioLens.from_pretrained(checkpoint, dtype=dtype)
    exact, fast = both(lens, PROMPTS * 3, sites="logits", **settings)
    assert torch.equal(exact.codes, fast.codes)
    assert fast.cache["hook_logits"].dtype == exact.cache["hook_logits"].dtype == getattr(torch, dtype)


def test_etude_is_equal() -> None:
    etude = al.AudioLens.from_pretrained("etude")
    prompts = ["fast piano", "slow strings", "bright bells"]
    exact, fast = both(etude, prompts, 2.0, sites="logits", branch="both")
    assert torch.equal(exact.codes, fast.codes)
    torch.testing.assert_close(fast.cache["hook_logits"], exact.cache["hook_logits"], atol=1e-4, rtol=1e-4)


class Other(nn.Linear):
    """A linear layer that adds something, as an adapter does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 0.3 * input.roll(1, -1)


def test_adapters_and_hooks_on_called_modules_take_part(checkpoint: Any) -> None:
    lens = al.AudioLens.from_pretrained(checkpoint)
    before = lens.generate(PROMPTS, SECONDS, seeds=1, decode=False, engine="fast").codes
    block = lens.model.decoder.model.decoder.layers[1]
    block.self_attn.q_proj.__class__ = Other
    block.self_attn.v_proj.__class__ = Other
    block.encoder_attn.out_proj.__class__ = Other
    exact, fast = both(lens)
    same(exact, fast)
    assert not torch.equal(fast.codes, before)
    handle = block.fc2.register_forward_hook(lambda module, given, out: out * 1.5)
    hooked, fast = both(lens)
    handle.remove()
    same(hooked, fast)
    assert not torch.equal(fast.codes, exact.codes)


def hook_on(path: str) -> Any:
    def attach(lens: Any) -> Any:
        module = lens.model.get_submodule(path)
        return module.register_forward_hook(lambda *_: None).remove

    return attach


def replaced(path: str) -> Any:
    def attach(lens: Any) -> Any:
        own = lens.model.get_submodule(path).__dict__
        before = own.get("forward")
        assert before is not None
        own["forward"] = lambda *given, **named: before(*given, **named)
        return lambda: own.__setitem__("forward", before)

    return attach


def training(lens: Any) -> Any:
    lens.model.decoder.model.decoder.train()
    return lens.model.eval


def for_all_modules(_: Any) -> Any:
    return nn.modules.module.register_module_forward_hook(lambda *_: None).remove


DECODER = "decoder.model.decoder"


@pytest.mark.parametrize(
    ("attach", "message"),
    [
        (hook_on(""), "has a hook"),
        (hook_on("decoder"), "has a hook"),
        (hook_on(f"{DECODER}.layers.1"), "has a hook"),
        (hook_on(f"{DECODER}.layers.1.self_attn"), "has a hook"),
        (replaced(f"{DECODER}.layers.1"), "forward method of .* was replaced"),
        (replaced(f"{DECODER}.embed_positions"), "forward method of .* was replaced"),
        (training, "is in training mode"),
        (for_all_modules, "a forward hook for all modules"),
    ],
)
def test_what_would_be_missed_is_refused_even_after_the_comparison(
    checkpoint: Any, codes: Tensor, attach: Any, message: str
) -> None:
    lens = al.AudioLens.from_pretrained(checkpoint)
    given: dict[str, Any] = {"seconds": SECONDS, "seeds": 1, "decode": False}
    lens.generate("calm", **given, engine="fast")
    detach = attach(lens)
    with pytest.raises(InputError, match=message):
        lens.generate("calm", **given, engine="fast")
    if attach is not training:
        assert lens.generate(["calm"] * 2, **given, batch_size=1, engine="auto").settings["engine"] == "exact"
    with pytest.raises(InputError, match=f"patching computes the blocks itself: .*{message}"):
        patching.patch(lens, ["fast piano"], ["slow piano"], codes[:1], by="component", progress=False)
    detach()
    assert lens.generate("calm", **given, engine="fast").settings["engine"] == "fast"


def test_the_hooks_with_which_transformers_collects_outputs_are_harmless(checkpoint: Any, codes: Tensor) -> None:
    lens = al.AudioLens.from_pretrained(checkpoint)
    ids = torch.zeros(4, 3, dtype=torch.long)
    lens.model(**lens.tokenizer(["calm"], return_tensors="pt"), decoder_input_ids=ids, output_hidden_states=True)
    layer = lens.model.decoder.model.decoder.layers[0]
    assert layer._forward_hooks  # transformers leaves them
    same(*both(lens))
    patching.patch(lens, ["fast piano"], ["slow piano"], codes[:1], by="component", progress=False)


def test_a_replaced_output_projection_is_called_in_both_halves(checkpoint: Any) -> None:
    lens = al.AudioLens.from_pretrained(checkpoint)
    shift = torch.linspace(-2, 2, lens.config.d_model)
    for block in lens.traced_model.blocks:
        own = block.encoder_attn.out_proj.__dict__
        before = own.get("forward")
        own["forward"] = lambda x, before=before: before(x) + shift
    same(*both(lens))


def test_arguments_that_only_the_exact_engine_takes(lens: Any) -> None:
    for kwargs in ({"seeds": None}, {"seeds": 1, "use_cache": False}):
        with pytest.raises(InputError, match=r"engine='fast': .*Leave engine out"):
            lens.generate("calm", SECONDS, engine="fast", **kwargs)
        assert lens.generate("calm", SECONDS, engine="auto", **kwargs).settings["engine"] == "exact"
    with pytest.raises(InputError, match=r"engine='quick': expected 'exact', 'fast' or 'auto'"):
        lens.generate("calm", SECONDS, seeds=1, engine="quick")


def test_auto_compares_the_first_batch(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lens = al.AudioLens.from_pretrained(checkpoint)
    exact = lens.generate(PROMPTS, SECONDS, seeds=1, batch_size=2, sites="resid_post")
    auto = lens.generate(PROMPTS, SECONDS, seeds=1, batch_size=2, sites="resid_post", engine="auto")
    assert auto.settings["engine"] == "fast"
    same(exact, auto)
    generate = fast_clips.generate
    called = []

    def wrong(*args: Any) -> Tensor:
        called.append(1)
        return (generate(*args) + 1) % 32

    monkeypatch.setattr(fast_clips, "generate", wrong)
    auto = lens.generate(PROMPTS, SECONDS, seeds=1, batch_size=2, sites="resid_post", engine="auto")
    assert auto.settings["engine"] == "exact"
    assert len(called) == 1
    same(exact, auto)


def test_auto_takes_the_exact_engine_where_the_fast_one_fails(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lens = al.AudioLens.from_pretrained(checkpoint)
    asked: dict[str, Any] = {"seconds": SECONDS, "seeds": 1, "batch_size": 2, "decode": False, "engine": "auto"}
    assert lens.generate(PROMPTS[:2], **asked).settings["engine"] == "exact"  # a single batch

    def fails(*_: Any) -> Tensor:
        raise InputError("the fast engine fails")

    monkeypatch.setattr(fast_clips, "generate", fails)
    exact = lens.generate(PROMPTS, **{**asked, "engine": "exact"})
    engines._VERDICTS[lens.model] = ""
    for _ in range(2):
        auto = lens.generate(PROMPTS, **asked)
        assert auto.settings["engine"] == "exact"
        same(exact, auto)
        engines._VERDICTS.clear()
    with pytest.raises(InputError, match=r"the engines could not be compared \(the fast engine fails\)"):
        lens.generate(PROMPTS, **{**asked, "engine": "fast"})
    assert lens.model not in engines._VERDICTS


def test_an_intervention_that_cures_the_model_works_with_auto(checkpoint: Any) -> None:
    lens = al.AudioLens.from_pretrained(checkpoint)
    with torch.no_grad():
        lens.model.decoder.model.decoder.layers[1].fc2.weight.fill_(torch.nan)
    asked: dict[str, Any] = {"seconds": SECONDS, "seeds": 1, "batch_size": 2, "decode": False}
    cure = al.Apply(torch.zeros_like, site="mlp_out", layer=1)
    exact = lens.generate(PROMPTS, **asked, interventions=cure)
    auto = lens.generate(PROMPTS, **asked, interventions=cure, engine="auto")
    same(exact, auto)


def test_threads_wait_for_the_comparison(checkpoint: Any) -> None:
    lens = al.AudioLens.from_pretrained(checkpoint)
    embeddings = lens.model.decoder.model.decoder.embed_positions
    weights = embeddings.weights.clone()
    forward = type(embeddings).forward

    class Doubled(type(embeddings)):
        def forward(self, *given: Any, **named: Any) -> Tensor:
            return 2 * forward(self, *given, **named)

    embeddings.__class__ = Doubled
    outcomes: list[str] = []

    def run() -> None:
        try:
            lens.generate("calm", SECONDS, seeds=1, decode=False, engine="fast")
            outcomes.append("clip")
        except InputError:
            outcomes.append("refused")

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["refused"] * 6
    assert torch.equal(weights, embeddings.weights)


def test_a_decoder_that_computes_something_else_is_refused(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lens = al.AudioLens.from_pretrained(checkpoint)
    embedded = PlainDecoder.embedded
    monkeypatch.setattr(PlainDecoder, "embedded", lambda self, ids: embedded(self, ids) * 1.1)
    with pytest.raises(InputError, match=r"its logits differ from the model's own by .* standard deviations"):
        lens.generate("calm", SECONDS, seeds=1, engine="fast")
    assert lens.generate("calm", SECONDS, seeds=1, engine="auto").settings["engine"] == "exact"
    monkeypatch.undo()
    engines._VERDICTS.clear()
    assert lens.generate("calm", SECONDS, seeds=1, engine="fast").settings["engine"] == "fast"


def test_a_site_that_the_decoder_does_not_reach_is_an_error(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainDecoder, "mlp", lambda self, layer, stream, sites: _none_visited(self, layer, stream))
    with pytest.raises(InputError, match=r"engine='fast' does not reach blocks.1.hook_mlp_out"):
        lens.generate(
            "calm", SECONDS, seeds=1, engine="fast", decode=False, interventions=al.Scale(2.0, site="mlp_out", layer=1)
        )


def _none_visited(decoder: Any, layer: int, stream: Tensor) -> Any:
    (out,) = yield decoder.blocks[layer].mlp, stream
    return out


def test_the_model_and_the_random_state_are_left_as_they_were(lens: Any) -> None:
    weights = {name: value.clone() for name, value in lens.model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    lens.generate(PROMPTS, SECONDS, seeds=1, engine="fast", interventions=al.Scale(2.0, layers=[1]))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, lens.model.state_dict()[name]) for name, value in weights.items())
    assert not torch.is_inference(lens.generate("calm", SECONDS, seeds=1, engine="fast").codes)


def test_a_step_keeps_no_memory(lens: Any) -> None:
    """As many tensors exist at a late step as at an early one, after keys and values have grown once."""
    calls, counts = [0], []

    def count(value: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] in (6, 11):
            gc.collect()
            counts.append(sum(type(one) is Tensor for one in gc.get_objects()))
        return value

    lens.generate("calm", SECONDS, seeds=1, engine="fast", interventions=al.Apply(count, layers=[1], branch="cond"))
    assert calls[0] == round(SECONDS * lens.config.frame_rate) + max(lens.config.delays)
    assert counts[0] == counts[1]


def test_the_unconditional_half_is_skipped_only_where_nothing_is_lost(
    lens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From four rows on, the cross-attention runs on the conditional half alone, unless a site of it is visited."""
    seen: list[int] = []
    cross = plain_decoder.PlainDecoder.cross_attention

    def watched(self: Any, layer: int, stream: Tensor, sites: Any, memory: Any) -> Any:
        seen.append(len(memory.text(layer).key))
        return cross(self, layer, stream, sites, memory)

    monkeypatch.setattr(plain_decoder.PlainDecoder, "cross_attention", watched)
    for rows, edit, expected in ((5, (), 5), (5, al.Scale(1.0, site="cross_attn.z"), 10), (3, (), 6)):
        seen.clear()
        lens.generate(["calm"] * rows, SECONDS, seeds=1, decode=False, engine="fast", interventions=edit)
        assert set(seen) == {expected}
