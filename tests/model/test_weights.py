"""Named weights equal the model's modules, have TransformerLens's shapes, and share the model's memory."""

import pytest
import torch

from audiolens.errors import InputError, InputTypeError

PROMPTS = ["fast piano", "slow dark guitar music"]
SITES = [
    "resid_pre",
    "ln1.normalized",
    *(f"attn.{part}" for part in "qkvz"),
    "attn_out",
    "cross_attn.z",
    "cross_attn_out",
    "mlp.pre",
    "mlp.post",
    "mlp_out",
    "ln_final.normalized",
]


@pytest.fixture(scope="module")
def codes() -> torch.Tensor:
    return torch.randint(0, 32, (2, 4, 15), generator=torch.Generator().manual_seed(0))


def test_weights_turn_each_site_into_the_next(lens, codes):
    logits, cache = lens.run_with_cache(PROMPTS, codes, sites=SITES)
    close = {"rtol": 1e-4, "atol": 1e-5}
    for layer in range(3):
        normed = cache["ln1.normalized", layer]
        for part, weight in {"q": lens.W_Q, "k": lens.W_K, "v": lens.W_V}.items():
            assert weight[layer].shape == (4, 48, 12)
            by_hand = torch.einsum("rsd,hdk->rshk", normed, weight[layer])
            torch.testing.assert_close(by_hand, cache[f"attn.{part}", layer], **close)
        for attention, weight in {"attn": lens.W_O, "cross_attn": lens.W_O_cross}.items():
            assert weight[layer].shape == (4, 12, 48)
            by_hand = torch.einsum("rshk,hkd->rsd", cache[f"{attention}.z", layer], weight[layer])
            torch.testing.assert_close(by_hand, cache[f"{attention}_out", layer], **close)
        normed = cache["resid_pre", layer] + cache["attn_out", layer] + cache["cross_attn_out", layer]
        normed = lens.model.decoder.model.decoder.layers[layer].final_layer_norm(normed)
        torch.testing.assert_close(normed @ lens.W_in[layer], cache["mlp.pre", layer], **close)
        torch.testing.assert_close(cache["mlp.post", layer] @ lens.W_out[layer], cache["mlp_out", layer], **close)
    for codebook in range(4):
        by_hand = cache["ln_final.hook_normalized"] @ lens.W_U[codebook]
        torch.testing.assert_close(by_hand, logits[:, codebook], **close)
    # At the start token every codebook embeds the last row of its table.
    start = sum(table[-1] for table in lens.W_E) + lens.W_pos[0]
    torch.testing.assert_close(start.expand(2, -1), cache["resid_pre", 0][:, 0], **close)


def test_cross_attention_weights_are_the_cross_attention_s_own(lens):
    for layer, block in enumerate(lens.model.decoder.model.decoder.layers):
        text = torch.randn(5, 48)
        for weight, module in [
            (lens.W_Q_cross, block.encoder_attn.q_proj),
            (lens.W_K_cross, block.encoder_attn.k_proj),
            (lens.W_V_cross, block.encoder_attn.v_proj),
        ]:
            by_hand = torch.einsum("td,hdk->thk", text, weight[layer]).flatten(1)
            torch.testing.assert_close(by_hand, module(text), rtol=1e-4, atol=1e-5)


def test_weights_are_views_of_the_model(lens):
    block = lens.model.decoder.model.decoder.layers[1]
    for view, whole in [
        (lens.W_Q[1], block.self_attn.q_proj.weight),
        (lens.W_O_cross[1], block.encoder_attn.out_proj.weight),
        (lens.W_in[1], block.fc1.weight),
        (lens.W_U[1], lens.model.decoder.lm_heads[1].weight),
        (lens.W_E[1], lens.model.decoder.model.decoder.embed_tokens[1].weight),
    ]:
        assert view.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        assert not view.requires_grad


def test_weights_are_indexed_stacked_and_counted(lens, stereo_lens):
    assert torch.equal(lens.W_Q[2, 1], lens.W_Q[2][1])
    assert torch.equal(lens.W_Q[-1], lens.W_Q[2])
    assert torch.stack(lens.W_Q).shape == (3, 4, 48, 12)
    assert [len(lens.W_Q[1:]), len(lens.W_U), len(stereo_lens.W_E)] == [2, 4, 8]
    assert (lens.W_E[0].shape, lens.W_U[0].shape) == ((33, 48), (48, 32))
    with pytest.raises(InputError, match="3, 0 to 2"):
        lens.W_Q[3]
    with pytest.raises(InputTypeError, match=r"torch\.stack"):
        lens.W_Q[:, 0]
