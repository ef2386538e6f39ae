"""Every cell of a patching grid equals one full forward pass with a raw hook; grids, gaps and bad input."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import audiolens as al
from analysis import patching
from audiolens.model.timeline import delay

CLEAN = ["fast bright piano", "fast loud music with drums"]
CORRUPTED = ["slow dark piano", "slow soft music with guitar"]
RATE, FRAMES, SCORED = 25, 15, 9
WINDOWS = [(0.0, 0.08), (0.08, 0.2), (0.2, 0.36)]
STEPS = [(0, 2), (2, 5), (5, 9)]
METRIC = patching.LogLikelihood((0.0, SCORED / RATE))
QUIET: dict[str, Any] = {"progress": False, "n_bootstrap": 50, "n_permutations": 50}


@pytest.fixture(scope="module")
def mono(checkpoint: Path) -> al.AudioLens:
    """In double precision, where an effect of a millinat has nine digits."""
    return loud(al.AudioLens.from_pretrained(checkpoint, dtype="float64"))


@pytest.fixture(scope="module")
def stereo(stereo_checkpoint: Path) -> al.AudioLens:
    return loud(al.AudioLens.from_pretrained(stereo_checkpoint, dtype="float64"))


def loud(lens: al.AudioLens) -> al.AudioLens:
    """With a text that is heard: as they come, random weights attend to all its tokens alike."""
    with torch.no_grad():
        for layer in lens.model.decoder.model.decoder.layers:
            for projection in (layer.encoder_attn.q_proj, layer.encoder_attn.k_proj, layer.encoder_attn.v_proj):
                projection.weight.mul_(6)
    return lens


def codes_for(lens: al.AudioLens, rows: int = 2, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 32, (rows, lens.config.n_codebooks, FRAMES), generator=generator)


SITES = [
    "resid_pre", "ln1.normalized", "attn.q", "attn.k", "attn.v", "attn.z", "attn_out", "resid_mid", "cross_attn.q",
    "cross_attn.k", "cross_attn.v", "cross_attn.z", "cross_attn_out", "resid_cross", "mlp.pre", "mlp.post", "mlp_out",
    "resid_post",
]  # fmt: skip


# The naive side: transformers alone, one forward a cell, a torch hook where the patch is made.


@contextmanager
def hooked(module: Any, edit: Callable[[Tensor], Tensor | None], before: bool = False) -> Iterator[None]:
    """`edit` the output of a module, or its input; in place of a pair, its first."""

    def after_hook(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    def before_hook(_: Any, args: Any) -> Any:
        edited = edit(args[0])
        return None if edited is None else (edited, *args[1:])

    handle = module.register_forward_pre_hook(before_hook) if before else module.register_forward_hook(after_hook)
    try:
        yield
    finally:
        handle.remove()


def module_of(lens: al.AudioLens, site: str, layer: int) -> tuple[Any, bool]:
    """Where a site's values pass, and whether as the module's input."""
    block = lens.model.decoder.model.decoder.layers[layer]
    places = {
        "resid_pre": (block, True),
        "resid_post": (block, False),
        "resid_mid": (block.encoder_attn_layer_norm, True),
        "resid_cross": (block.final_layer_norm, True),
        "ln1.normalized": (block.self_attn_layer_norm, False),
        "attn_out": (block.self_attn, False),
        "cross_attn_out": (block.encoder_attn, False),
        "mlp_out": (block.fc2, False),
        "mlp.pre": (block.fc1, False),
        "mlp.post": (block.fc2, True),
    }
    for group, attention in (("attn", block.self_attn), ("cross_attn", block.encoder_attn)):
        places |= {f"{group}.{name}": (getattr(attention, f"{name}_proj"), False) for name in "qkv"}
        places[f"{group}.z"] = (attention.out_proj, True)
    return places[site]


def forward(lens: al.AudioLens, prompt: str, codes: Tensor) -> Tensor:
    """Logits "codebook step vocab" of one row."""
    words = lens.tokenizer([prompt], return_tensors="pt")
    columns = delay(codes[None], lens.config.delays, lens.config.pad_code)[0, :, :-1]
    with torch.no_grad():
        return lens.model(**words, decoder_input_ids=columns, use_cache=False).logits


def nats(lens: al.AudioLens, logits: Tensor, codes: Tensor, first: int = 0) -> np.ndarray:
    """Log-likelihood of the scored frames, by codebook."""
    table = logits.log_softmax(-1)
    return np.array(
        [
            sum(float(table[k, frame + shift, codes[k, frame]]) for frame in range(first, first + SCORED))
            for k, shift in enumerate(lens.config.delays)
        ]
    )


def kept_of(lens: al.AudioLens, run: tuple[str, Tensor]) -> dict[tuple[str, int], Tensor]:
    """What passes at every place of a run."""
    kept: dict[tuple[str, int], Tensor] = {}
    with ExitStack() as stack:
        for layer in range(lens.config.n_layers):
            for site in SITES:
                module, before = module_of(lens, site, layer)

                def keep(value: Tensor, key: tuple[str, int] = (site, layer)) -> Tensor:
                    kept[key] = value.clone()
                    return value

                stack.enter_context(hooked(module, keep, before))
        forward(lens, *run)
    return kept


def one_cell(
    lens: al.AudioLens,
    base: tuple[str, Tensor],
    source: dict[tuple[str, int], Tensor],
    sites: Sequence[str],
    layer: int,
    pick: tuple[Any, ...],
) -> Tensor:
    """Logits of the base run with values `pick`ed "row place feature" out of the source run."""
    with ExitStack() as stack:
        for site in sites:
            module, before = module_of(lens, site, layer)
            # What the block also keeps for its skip connection must change where it is.
            in_place = site in ("resid_mid", "resid_cross")

            def edit(value: Tensor, site: str = site, in_place: bool = in_place) -> Tensor | None:
                changed = value if in_place else value.clone()
                changed[pick] = source[site, layer][pick]
                return None if in_place else changed

            stack.enter_context(hooked(module, edit, before))
        return forward(lens, *base)


def naive(
    lens: al.AudioLens, mode: str, cells: Callable[[int], list[list[tuple[Sequence[str], int, tuple[Any, ...]]]]]
) -> np.ndarray:
    """The grid "pair codebook layer column": `cells(pair)` names sites, layer and what is picked of each."""
    codes = codes_for(lens)
    grids = []
    for row, (clean, corrupted) in enumerate(zip(CLEAN, CORRUPTED, strict=True)):
        runs = (clean, codes[row]), (corrupted, codes[row])
        base, other = runs[::-1] if mode == "denoising" else runs
        source = kept_of(lens, other)
        grid = [[nats(lens, one_cell(lens, base, source, *cell), codes[row]) for cell in line] for line in cells(row)]
        grids.append(np.moveaxis(np.array(grid), -1, 0))
    return np.array(grids)


def compare(lens: al.AudioLens, found: patching.PatchingResult, expected: np.ndarray) -> None:
    codes = codes_for(lens)
    for name, prompts in (("clean", CLEAN), ("corrupted", CORRUPTED)):
        plain = [nats(lens, forward(lens, prompt, codes[i]), codes[i]) for i, prompt in enumerate(prompts)]
        np.testing.assert_allclose(getattr(found, name), plain, rtol=1e-8)
    before = found.corrupted if found.mode == "denoising" else found.clean
    np.testing.assert_allclose(found.patched, expected, rtol=1e-8)
    # The effects themselves, and not only the hundreds of nats that they change.
    change, wanted = (grid - before[:, :, None, None] for grid in (found.patched, expected))
    np.testing.assert_allclose(change, wanted, rtol=1e-5, atol=1e-9)
    assert np.abs(wanted).max() > 1e-3


LENSES = pytest.mark.parametrize("which", ["mono", "stereo"])
MODES = pytest.mark.parametrize("mode", ["denoising", "noising"])


@LENSES
@MODES
def test_seconds_equal_one_forward_a_cell(which: str, mode: Any, request: pytest.FixtureRequest) -> None:
    lens = request.getfixturevalue(which)
    found = patching.patch(
        lens, CLEAN, CORRUPTED, codes_for(lens), METRIC, "resid_post", windows=WINDOWS, mode=mode, **QUIET
    )
    expected = naive(
        lens, mode, lambda _: [[(["resid_post"], layer, np.s_[:, a:b]) for a, b in STEPS] for layer in range(3)]
    )
    compare(lens, found, expected)


@pytest.mark.parametrize("site", [site for site in SITES if site not in ("cross_attn.k", "cross_attn.v")])
def test_every_site_equals_a_hook_there(mono: al.AudioLens, site: str) -> None:
    options: dict[str, Any] = {"windows": [(0.0, 0.08), (0.2, 0.36)], "layers": [0, 2]}
    found = patching.patch(mono, CLEAN, CORRUPTED, codes_for(mono), METRIC, site, **options, **QUIET)
    steps = [(0, 2), (5, 9)]
    expected = naive(
        mono, "denoising", lambda _: [[([site], layer, np.s_[:, a:b]) for a, b in steps] for layer in (0, 2)]
    )
    compare(mono, found, expected)


@LENSES
@MODES
@pytest.mark.parametrize("site", ["cross_attn.z", "attn.v"])
def test_heads_equal_one_forward_a_cell(which: str, mode: Any, site: str, request: pytest.FixtureRequest) -> None:
    lens = request.getfixturevalue(which)
    found = patching.patch(lens, CLEAN, CORRUPTED, codes_for(lens), METRIC, site, by="head", mode=mode, **QUIET)
    everything = slice(0, SCORED + max(lens.config.delays))
    expected = naive(
        lens,
        mode,
        lambda _: [
            [([site], layer, np.s_[:, everything, head * 12 : (head + 1) * 12]) for head in range(4)]
            for layer in range(3)
        ],
    )
    compare(lens, found, expected)


def test_a_heads_result_is_its_z(mono: al.AudioLens) -> None:
    grids = [
        patching.patch(mono, CLEAN, CORRUPTED, codes_for(mono), METRIC, site, by="head", **QUIET).patched
        for site in ("cross_attn.z", "cross_attn.result")
    ]
    np.testing.assert_array_equal(grids[0], grids[1])


@LENSES
@MODES
def test_components_equal_one_forward_a_cell(which: str, mode: Any, request: pytest.FixtureRequest) -> None:
    lens = request.getfixturevalue(which)
    found = patching.patch(
        lens, CLEAN, CORRUPTED, codes_for(lens), METRIC, by="component", mode=mode, seconds=(0.08, 0.2), **QUIET
    )
    sites = ["attn_out", "cross_attn_out", "mlp_out", "resid_post"]
    assert found.columns == tuple(sites)
    expected = naive(lens, mode, lambda _: [[([site], layer, np.s_[:, 2:5]) for site in sites] for layer in range(3)])
    compare(lens, found, expected)


@LENSES
@MODES
def test_tokens_equal_one_forward_a_cell(which: str, mode: Any, request: pytest.FixtureRequest) -> None:
    lens = request.getfixturevalue(which)
    found = patching.patch(lens, CLEAN, CORRUPTED, codes_for(lens), METRIC, by="token", mode=mode, **QUIET)
    # Of six tokens the longer prompts have; the shorter pair has four.
    assert found.columns == ("+0 fast/slow", "+1", "+2", "+3", "+4 drums/guitar", "+5 </s>")
    both = ["cross_attn.k", "cross_attn.v"]
    expected = naive(
        lens,
        mode,
        lambda row: [[(both, layer, np.s_[:, min(t, 3 if row == 0 else 5)]) for t in range(6)] for layer in range(3)],
    )
    assert np.isnan(found.patched[0, :, :, 4:]).all()
    expected[0, :, :, 4:] = np.nan
    assert np.isfinite(found.patched[1]).all()
    before = found.corrupted if mode == "denoising" else found.clean
    np.testing.assert_allclose(found.patched, expected, rtol=1e-8)
    change, wanted = (grid - before[:, :, None, None] for grid in (found.patched, expected))
    np.testing.assert_allclose(change, wanted, rtol=1e-5, atol=1e-9)
    assert found.means.n[-1, 0].tolist() == [2, 2, 2, 2, 1, 1]


def test_text_states_equal_a_forward_on_the_other_states(mono: al.AudioLens) -> None:
    found = patching.patch(
        mono, CLEAN[1:], CORRUPTED[1:], codes_for(mono)[1:], METRIC, "hook_text_states", by="token", **QUIET
    )
    assert found.layers == (None,)
    codes = codes_for(mono)[1]
    kept: list[Tensor] = []
    decoder = mono.model.decoder.model.decoder
    for token in range(6):

        def edit(_: Any, args: Any, given: dict[str, Any], token: int = token) -> Any:
            states = given["encoder_hidden_states"].clone()
            if len(kept) <= token:
                kept.append(states.clone())
                return None
            states[:, token] = kept[-1][:, token]
            return args, {**given, "encoder_hidden_states": states}

        handle = decoder.register_forward_pre_hook(edit, with_kwargs=True)
        forward(mono, CLEAN[1], codes)
        changed = forward(mono, CORRUPTED[1], codes)
        handle.remove()
        np.testing.assert_allclose(found.patched[0, :, 0, token], nats(mono, changed, codes), rtol=1e-8)


@pytest.mark.parametrize("site", ["attn.pattern", "cross_attn.pattern"])
def test_patterns_equal_replacing_them_through_the_lens(mono: al.AudioLens, site: str) -> None:
    codes = codes_for(mono)[1:]
    found = patching.patch(mono, CLEAN[1:], CORRUPTED[1:], codes, METRIC, site, by="head", layers=1, **QUIET)
    _, cache = mono.run_with_cache(CLEAN[1:], codes, sites=site, layers=1)
    for head in range(4):
        edit = al.Replace(cache[site, 1], site=site, layers=1, heads=[head])
        logits = mono.run_with_interventions(CORRUPTED[1:], codes, edit)
        np.testing.assert_allclose(found.patched[0, :, 0, head], nats(mono, logits[0], codes[0]), rtol=1e-6)


@pytest.mark.parametrize("site", ["attn.pattern", "cross_attn.pattern", "attn.z"])
@pytest.mark.parametrize(("n_pairs", "windows"), [(1, 12), (3, 4)])
def test_windows_of_as_many_steps_as_a_climb_has_rows(
    mono: al.AudioLens, site: str, n_pairs: int, windows: int
) -> None:
    # Climbs hold 1 pair x 3 cells over the last 3 steps, 3 x 2 over 6, 3 x 3 over 9.
    clean, corrupted = [*CLEAN, "bright jazz drums"][-n_pairs:], [*CORRUPTED, "dark jazz drums"][-n_pairs:]
    codes, width = codes_for(mono, n_pairs), 12 // windows
    found = patching.patch(mono, clean, corrupted, codes, METRIC, site, windows=windows, **QUIET)
    _, cache = mono.run_with_cache(clean, codes, sites=site)
    time = 2 if site.endswith("pattern") else 1
    for layer in range(3):
        for window in range(windows):
            first, end = width * window, width * (window + 1)
            edit = al.Replace(
                cache[site, layer].narrow(time, first, width),
                site=site,
                layers=layer,
                seconds=(first / RATE, end / RATE),
            )
            logits = mono.run_with_interventions(corrupted, codes, edit)
            expected = [nats(mono, logits[row], codes[row]) for row in range(n_pairs)]
            np.testing.assert_allclose(found.patched[:, :, layer, window], expected, rtol=1e-9)


def test_single_precision_is_within_a_hundred_thousandth(checkpoint: Path, mono: al.AudioLens) -> None:
    single = loud(al.AudioLens.from_pretrained(checkpoint))
    grids = [
        patching.patch(model, CLEAN, CORRUPTED, codes_for(mono), METRIC, windows=3, **QUIET).patched
        for model in (single, mono)
    ]
    np.testing.assert_allclose(grids[0], grids[1], rtol=1e-5)


def test_nothing_behind_the_scored_window_has_an_effect(mono: al.AudioLens) -> None:
    metric = patching.LogLikelihood((0.0, 0.2))
    # Codebook 3's frame 4 is predicted at step 7.
    windows = [(0.0, 0.04), (0.28, 0.32), (0.32, 0.4), (0.4, 0.6)]
    found = patching.patch(mono, CLEAN, CORRUPTED, codes_for(mono), metric, windows=windows, **QUIET)
    change = found.patched - found.corrupted[:, :, None, None]
    assert (change[..., 2:] == 0).all()
    # At step 0 of the last block only the first codebook has a frame to predict.
    assert (np.abs(change[:, :, :2, 0]) > 0).all()
    assert (change[:, 1:, 2, 0] == 0).all()
    # At step 7 only the last codebook has a frame to predict.
    assert (change[:, :3, :, 1] == 0).all()
    assert (np.abs(change[:, 3, :, 1]) > 0).all()


def test_small_memory_cuts_the_grid_and_changes_nothing(mono: al.AudioLens) -> None:
    arguments = mono, CLEAN * 3, CORRUPTED * 3, codes_for(mono, 6), METRIC, "attn.z"
    whole = patching.plan(*arguments, by="head", timed=False)
    assert (whole.cells, whole.pairs, whole.chunk, whole.batch) == (12, 6, 12, 6)
    tight: dict[str, Any] = {"by": "head", "memory_gib": 0.001}
    cut = patching.plan(*arguments, **tight)
    assert cut.chunk < 12
    assert cut.batch < 6
    assert cut.seconds > 0
    assert "12 cells x 6 pairs" in repr(cut)
    grids = [patching.patch(*arguments, **options, **QUIET).patched for options in ({"by": "head"}, tight)]
    np.testing.assert_allclose(grids[0], grids[1], rtol=1e-10)


def test_a_plan_counts_what_causality_and_depth_spare(mono: al.AudioLens) -> None:
    found = patching.plan(mono, CLEAN, CORRUPTED, codes_for(mono), METRIC, windows=6, timed=False)
    assert found.naive_row_steps == 18 * 2 * 3 * 12
    # Two recorded runs of three blocks; above block l run 2 - l, over what is left of the clip.
    assert found.row_steps == 2 * (2 * 3 * 12 + (2 + 1 + 0) * (12 + 10 + 8 + 6 + 4 + 2))


def test_the_plan_and_a_bar_are_shown_first(mono: al.AudioLens, capsys: pytest.CaptureFixture[str]) -> None:
    patching.patch(mono, CLEAN, CORRUPTED, codes_for(mono), METRIC, windows=2, n_bootstrap=10, n_permutations=10)
    told = capsys.readouterr()
    assert "6 cells x 2 pairs" in told.out + told.err
    assert "patching" in told.err


def test_a_history_is_read_before_the_scored_window_and_the_clean_codes_in_it(mono: al.AudioLens) -> None:
    codes, own = codes_for(mono), codes_for(mono, seed=9)
    first, scored = 5, patching.LogLikelihood((0.2, (5 + SCORED) / RATE))
    found = patching.patch(
        mono, CLEAN, CORRUPTED, codes, scored, history=own[..., :first], windows=1, layers=0, **QUIET
    )
    for row in range(2):
        heard = torch.cat([own[row, :, :first], codes[row, :, first:]], dim=-1)
        theirs = nats(mono, forward(mono, CORRUPTED[row], heard), codes[row], first)
        np.testing.assert_allclose(found.corrupted[row], theirs, rtol=1e-8)
        ours = nats(mono, forward(mono, CLEAN[row], codes[row]), codes[row], first)
        np.testing.assert_allclose(found.clean[row], ours, rtol=1e-8)
    same = patching.patch(mono, CLEAN, CLEAN, codes, scored, history=own, windows=1, layers=2, **QUIET)
    # All that differs stands in the stream.
    np.testing.assert_allclose(same.normalised("0") if same.gap("0").clear else 1, 1, atol=0.5)
    assert np.abs(same.gap().value) > 0.1


def test_no_prompt_and_padded_ones_equal_a_forward_each(mono: al.AudioLens) -> None:
    codes = codes_for(mono)
    both = patching.patch(mono, ["fast", CLEAN[1]], [None, "slow"], codes, METRIC, windows=2, **QUIET)
    for row, (clean, corrupted) in enumerate([("fast", None), (CLEAN[1], "slow")]):
        alone = patching.patch(mono, clean, corrupted, codes[row : row + 1], METRIC, windows=2, **QUIET)
        np.testing.assert_allclose(both.patched[row], alone.patched[0], rtol=1e-9)
        _, source = mono.run_with_cache(clean, codes[row : row + 1], layers=[1])
        edit = al.Replace(source["resid_post", 1][:, :6], layers=1, seconds=(0.0, 0.24))
        logits = mono.run_with_interventions(corrupted, codes[row : row + 1], edit)
        np.testing.assert_allclose(alone.patched[0, :, 1, 0], nats(mono, logits[0], codes[row]), rtol=1e-6)


@pytest.mark.parametrize("which", ["melody_lens", "stereo_melody_lens"])
@pytest.mark.parametrize(("by", "site"), [("seconds", "resid_post"), ("head", "attn.v"), ("component", None)])
def test_melody_equals_replacing_through_the_lens(
    which: str, by: Any, site: Any, request: pytest.FixtureRequest
) -> None:
    lens = request.getfixturevalue(which)
    clean, corrupted, codes = ["fast piano", "fast"], ["slow loud guitar", "dark"], codes_for(lens)
    metric, options = patching.LogLikelihood((0.0, 0.36)), {"layers": [1], "windows": [(0.12, 0.24)]}
    found = patching.patch(lens, clean, corrupted, codes, metric, site, by=by, seconds=(0.12, 0.24), **options, **QUIET)
    wanted = {"seconds": ["resid_post"], "head": ["attn.v"] * 4, "component": ["attn_out", "mlp_out", "resid_post"]}
    for row in range(2):
        _, source = lens.run_with_cache(clean[row], codes[row : row + 1], sites=set(wanted[by]), layers=[1])
        for column, name in enumerate(wanted[by]):
            edit = al.Replace(
                source[name, 1][:, 3:6],
                site=name,
                layers=1,
                seconds=(0.12, 0.24),
                heads=[column] if by == "head" else None,
            )
            logits = lens.run_with_interventions(corrupted[row], codes[row : row + 1], edit)
            expected = nats(lens, logits[0], codes[row])
            np.testing.assert_allclose(found.patched[row, :, 0, column], expected, rtol=1e-5)
