"""A family is a single value: other module names and another order of guidance halves need nothing else."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from everywhere import PROMPTS
from torch import Tensor, nn
from transformers import MusicgenForConditionalGeneration

import audiolens as al
from analysis import patching
from audiolens.model import families
from audiolens.model.families.musicgen import MUSICGEN

CODES = torch.randint(0, 32, (3, 4, 15), generator=torch.Generator().manual_seed(0))
NAMES = {
    "self_attn_layer_norm": "first_norm", "self_attn": "mixer", "encoder_attn_layer_norm": "text_norm",
    "encoder_attn": "reader", "final_layer_norm": "last_norm", "fc1": "widen", "fc2": "narrow", "activation_fn": "bend",
}  # fmt: skip


class Block(nn.Module):
    """A decoder layer of MusicGen with every part under another name."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        for old, new in NAMES.items():
            setattr(self, new, getattr(layer, old))

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None, cache: Any = None, **more: Any,
    ) -> Tensor:  # fmt: skip
        mixed, _ = self.mixer(self.first_norm(hidden_states), cache=cache, attention_mask=attention_mask, **more)
        mixed = hidden_states + mixed
        read, _ = self.reader(
            self.text_norm(mixed), key_value_states=encoder_hidden_states, attention_mask=encoder_attention_mask,
            cache=cache, **more,
        )  # fmt: skip
        read = mixed + read
        return read + self.narrow(self.bend(self.widen(self.last_norm(read))))


class OtherMusic(MusicgenForConditionalGeneration):
    pass


def renamed(path: str) -> str:
    first, _, rest = path.partition(".")
    return NAMES.get(first, first) + (f".{rest}" if rest else "")


def null_first(model: Any, text: Any, guided: bool) -> dict[str, Any]:
    states, mask = text.states, text.mask
    if guided:
        states, mask = (torch.cat([torch.zeros_like(one), one]) for one in (states, mask))
    return {"encoder_outputs": (states,), "attention_mask": mask}


FAMILY = replace(
    MUSICGEN,
    name="Other Music",
    architecture="OtherMusic",
    inputs=null_first,
    guided=("null", "cond"),
    parts=replace(
        MUSICGEN.parts,
        attention_norm="first_norm", attention="mixer", cross_attention_norm="text_norm", cross_attention="reader",
        mlp_norm="last_norm", mlp_in="widen", activation="bend", mlp_out="narrow",
    ),
    block_taps={hook: replace(tap, module=renamed(tap.module)) for hook, tap in MUSICGEN.block_taps.items()},
)  # fmt: skip


@pytest.fixture(scope="module")
def other(lens: Any) -> Any:
    """The tiny model as one of the other family."""
    model = copy.deepcopy(al.AudioLens.from_pretrained(lens.name).model)
    body = model.decoder.model.decoder
    body.layers = nn.ModuleList(map(Block, body.layers)).eval()
    model.__class__ = OtherMusic
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "FAMILIES", (*families.FAMILIES, FAMILY))
        yield al.AudioLens(model, lens.tokenizer, name=lens.name)


def test_every_site_is_read_as_in_the_family_that_it_was_made_of(lens: Any, other: Any) -> None:
    sites = list(lens.sites())
    assert list(other.sites()) == sites
    given = {"sites": sites, "branch": "both", "guidance_scale": 3.0}
    logits, cache = lens.run_with_cache(PROMPTS, CODES, **given)
    theirs, found = other.run_with_cache(PROMPTS, CODES, **given)
    assert torch.allclose(logits, theirs, atol=1e-5)
    for site in sites:
        assert torch.allclose(cache[site], found[site], atol=1e-5), site


@pytest.mark.parametrize("branch", ["cond", "null", "both"])
def test_each_half_of_the_guidance_is_edited_whatever_their_order(lens: Any, other: Any, branch: Any) -> None:
    edit = al.Add(torch.randn(lens.config.d_model, generator=torch.Generator().manual_seed(0)), branch=branch, layers=1)
    given = {"seconds": 0.4, "seeds": [1, 2], "interventions": edit, "sites": "resid_post", "branch": "null"}
    mine, theirs, fast = (
        one.generate(PROMPTS[:2], **given, engine=engine)
        for one, engine in ((lens, "exact"), (other, "exact"), (other, "fast"))
    )
    for found in (theirs, fast):
        assert torch.equal(mine.codes, found.codes)
        assert torch.allclose(mine.cache["resid_post", 2], found.cache["resid_post", 2], atol=1e-5)


def test_a_trace_reads_and_assigns_either_half(lens: Any, other: Any) -> None:
    import nnsight

    found = []
    for one in (lens, other):
        with one.trace(PROMPTS, codes=CODES, guidance_scale=3.0):
            place = one.site("blocks.0.hook_resid_post", branch="both")
            value = place.value
            place.value = torch.stack([value[0], 2 * value[1]])
            held = nnsight.save(one.site("blocks.1.hook_resid_pre", branch="null").value)
        found.append(held)
    assert torch.allclose(*found, atol=1e-5)


def test_patching_takes_the_blocks_of_the_family(lens: Any, other: Any) -> None:
    clean, corrupted = ["fast song"], ["slow song"]
    grids = [
        patching.patch(one, clean, corrupted, CODES[:1], by=by, progress=False).patched
        for by in ("seconds", "component", "head", "token")
        for one in (lens, other)
    ]
    for mine, theirs in zip(grids[::2], grids[1::2], strict=True):
        assert torch.allclose(torch.tensor(mine), torch.tensor(theirs), atol=1e-5)


def test_weights_have_the_names_of_transformerlens(lens: Any, other: Any) -> None:
    for name in ("W_Q", "W_O_cross", "W_in", "W_out", "W_U", "W_E"):
        for mine, theirs in zip(getattr(lens, name), getattr(other, name), strict=True):
            assert torch.equal(mine, theirs), name


def test_patching_knows_every_site_and_refuses_one_that_it_does_not() -> None:
    from analysis.patching.engine import REACHED, recorded_hooks
    from analysis.patching.grid import Cell
    from audiolens.errors import SiteError

    for family in families.FAMILIES:
        assert {*family.entry_taps, *family.block_taps, *family.exit_taps} <= REACHED
    with pytest.raises(SiteError, match=r"ln2.hook_normalized: patching does not reach this site"):
        recorded_hooks(None, [Cell((0, 0), ("ln2.hook_normalized",), 0, 0, 1)])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("prefixed", [False, True])
def test_a_new_recomputed_site_is_known_by_its_layout_and_not_by_its_name(
    lens: Any, melody_lens: Any, prefixed: bool
) -> None:
    from analysis.patching.grid import Grid, needs_tokens
    from analysis.site_grid import grid_sites
    from audiolens.errors import InputError
    from audiolens.model.timeline import clip_timeline

    before = melody_lens if prefixed else lens
    family = before.traced_model.family
    taps = {}
    for hook, tap in family.block_taps.items():
        taps[hook] = tap
        if hook.endswith("pattern"):
            taps[hook.replace("pattern", "weights")] = tap
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "FAMILIES", (replace(family, block_taps=taps),))
        new = al.AudioLens(before.model, before.tokenizer, name=before.name)
    groups = ["attn"] if prefixed else ["attn", "cross_attn"]
    _, cache = new.run_with_cache(PROMPTS[:1], CODES[:1], sites=[f"{one}.weights" for one in groups], layers=1)
    _, known = new.run_with_cache(PROMPTS[:1], CODES[:1], sites=[f"{one}.pattern" for one in groups], layers=1)
    timeline = clip_timeline(0.6, new.config)
    axes: dict[str, Any] = {"timeline": timeline, "layers": [1], "seconds": None, "heads": None, "tokens": ()}
    for group in groups:
        assert torch.equal(cache[f"{group}.weights", 1], known[f"{group}.pattern", 1])
        on_text = group == "cross_attn"
        assert needs_tokens(new, [f"{group}.hook_weights"]) is (on_text or prefixed)
        assert grid_sites(new, f"{group}.weights", 1)[f"{group}.weights"][0].on_text is on_text
        for by in ("head", "seconds"):
            grid = Grid.of(new, f"{group}.weights", by, steps=timeline.steps, windows=2, **axes)
            assert len(grid.cells) == (4 if by == "head" else 2)
        if not prefixed:
            with pytest.raises(InputError, match="no token axis"):
                Grid.of(new, f"{group}.weights", "token", steps=timeline.steps, windows=2, **axes)


def test_an_overflow_names_the_half_it_is_in(lens: Any, other: Any) -> None:
    from audiolens.errors import ActivationOverflow

    vector = torch.full((lens.config.d_model,), 3e38)
    for one in (lens, other):
        with pytest.raises(ActivationOverflow, match="branch cond"):
            one.generate(PROMPTS[:1], 0.4, seeds=[1], interventions=[al.Add(vector, branch="cond", layers=0)] * 2)
