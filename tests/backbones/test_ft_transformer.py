import numpy as np
import pytest
import torch
from torch import nn

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.ft_transformer import FTTransformer


def model_and_batch(n_outputs=3, cardinalities=(3, 5), **kwargs):
    torch.manual_seed(0)
    model = FTTransformer(4, cardinalities, n_outputs, width=16, n_heads=2, **kwargs).eval()
    with torch.no_grad():  # away from the symmetric start: every part has to matter
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x_cat = torch.tensor([[0, 4], [2, 0], [1, 1], [2, 2], [0, 3]])
    return model, {"x_num": torch.randn(5, 4), "x_cat": x_cat}


def layer_norm(x, norm):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + norm.eps) * array(norm.weight) + array(norm.bias)


def array(tensor):
    return tensor.detach().double().numpy()


def linear(x, layer):
    return x @ array(layer.weight).T + array(layer.bias)


def numpy_forward(model, x_num, x_cat, n_heads=2):
    """The paper's equations, one row at a time, in float64."""
    tokenizer, logits = model.tokenizer, []
    for numbers, codes in zip(array(x_num), x_cat.numpy()):
        tokens = [array(model.cls)]
        for j, x in enumerate(numbers):
            missing = array(tokenizer.missing[j])
            shift = missing if np.isnan(x) else x * array(tokenizer.weight[j])
            tokens.append(shift + array(tokenizer.bias[j]))
        start = 0
        for j, code in enumerate(codes):
            embedded = array(tokenizer.category.weight)[start + code]
            tokens.append(embedded + array(tokenizer.category_bias[j]))
            start += [3, 5][j]
        h = np.stack(tokens)
        for block in model.blocks:
            q, k, v = np.split(linear(layer_norm(h, block.attention_norm), block.qkv), 3, axis=-1)
            heads = []
            for head in np.split(np.arange(q.shape[1]), n_heads):
                scores = q[:, head] @ k[:, head].T / np.sqrt(len(head))
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, head])
            h = h + linear(np.concatenate(heads, axis=-1), block.project)
            expanded = linear(layer_norm(h, block.feedforward_norm), block.expand)
            value, gate = np.split(expanded, 2, axis=-1)
            h = h + linear(value * np.maximum(gate, 0), block.contract)
        logits.append(linear(np.maximum(layer_norm(h[0], model.norm), 0), model.head))
    return np.stack(logits)


@pytest.mark.parametrize("missing", [False, True])
def test_forward_is_the_paper(missing):
    model, batch = model_and_batch()
    if missing:
        batch["x_num"][1, 2] = batch["x_num"][3, 0] = torch.nan
    np.testing.assert_allclose(
        array(model(**batch)), numpy_forward(model, **batch), rtol=1e-5, atol=1e-5
    )


def test_forward_agrees_with_the_authors_module():
    rtdl = pytest.importorskip("rtdl_revisiting_models")
    model, batch = model_and_batch()
    theirs = rtdl.FTTransformer(
        n_cont_features=4,
        cat_cardinalities=[3, 5],
        d_out=3,
        d_block=16,
        n_blocks=3,
        attention_n_heads=2,
        attention_dropout=0.0,
        ffn_d_hidden=8 * 16 // 3,
        ffn_d_hidden_multiplier=None,
        ffn_dropout=0.0,
        residual_dropout=0.0,
    ).eval()
    # theirs has no norm before the first attention; ours does
    theirs.backbone.blocks[0]["attention_normalization"] = nn.LayerNorm(16)
    tokenizer, state = model.tokenizer, {}
    state["cls_embedding.weight"] = model.cls
    state["cont_embeddings.weight"] = tokenizer.weight
    state["cont_embeddings.bias"] = tokenizer.bias
    state["cat_embeddings.bias"] = tokenizer.category_bias
    state["cat_embeddings.embeddings.0.weight"] = tokenizer.category.weight[:3]
    state["cat_embeddings.embeddings.1.weight"] = tokenizer.category.weight[3:]
    parts = {
        "attention.W_out": "project",
        "attention_normalization": "attention_norm",
        "ffn_normalization": "feedforward_norm",
        "ffn.linear1": "expand",
        "ffn.linear2": "contract",
    }
    for i, block in enumerate(model.blocks):
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", getattr(block.qkv, kind).chunk(3)):
                state[f"backbone.blocks.{i}.attention.W_{name}.{kind}"] = part
            for name, ours in parts.items():
                layer = getattr(block, ours)
                state[f"backbone.blocks.{i}.{name}.{kind}"] = getattr(layer, kind)
    for kind in ("weight", "bias"):
        state[f"backbone.output.normalization.{kind}"] = getattr(model.norm, kind)
        state[f"backbone.output.linear.{kind}"] = getattr(model.head, kind)
    theirs.load_state_dict(state)
    torch.testing.assert_close(
        model(**batch), theirs(batch["x_num"], batch["x_cat"]), rtol=1e-5, atol=1e-5
    )


def test_tables_without_one_kind_of_feature():
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    assert FTTransformer(4, [], 2)(x).shape == (5, 2)
    codes = torch.tensor([[0], [1], [2], [1], [0]])
    logits = FTTransformer(0, [3], 2).eval()(torch.empty(5, 0), codes)
    assert torch.equal(logits[1], logits[3])
    assert not torch.equal(logits[1], logits[2])


def test_missing_numbers_and_unseen_categories_start_at_the_bias():
    tokenizer = FTTransformer(1, [3, 2], 2, width=8).tokenizer
    tokens = tokenizer(torch.tensor([[torch.nan]]), torch.tensor([[0, 0]]))
    assert torch.equal(tokens[0], torch.cat([tokenizer.bias, tokenizer.category_bias]))


def test_missing_numbers_have_finite_gradients():
    model, batch = model_and_batch()
    batch["x_num"][:, 1] = torch.nan
    model(**batch).square().sum().backward()
    for name, p in model.named_parameters():
        assert torch.isfinite(p.grad).all(), name
    assert (model.tokenizer.weight.grad[1] == 0).all()
    assert (model.tokenizer.missing.grad[1] != 0).any()


def test_dropout_acts_in_training_only():
    model, batch = model_and_batch(dropout=0.5)
    assert torch.equal(model(**batch), model(**batch))
    model.train()
    assert not torch.equal(model(**batch), model(**batch))


def test_attention_dropout_hides_whole_features_but_not_the_cls_token():
    model, _ = model_and_batch(cardinalities=[], dropout=0.4)
    block, n_rows = model.blocks[0].train(), 2000
    width = 16
    with torch.no_grad():
        block.qkv.weight[: 2 * width] = 0.0  # equal attention to all tokens that are seen
        block.qkv.bias.zero_()
        block.qkv.weight[2 * width :] = torch.eye(width)
    h = torch.eye(width)[:5].expand(n_rows, 5, width)  # a token of its own for each of five
    mixed = block._attend(h)[..., :5]
    assert torch.equal(mixed, mixed[:, :1].expand_as(mixed))  # the same for every query
    seen = mixed[:, 0] > 0
    torch.testing.assert_close(mixed[:, 0], seen / seen.sum(1, keepdim=True))
    assert seen[:, 0].all()
    torch.testing.assert_close(
        seen[:, 1:].float().mean(0), torch.full((4,), 0.6), atol=0.05, rtol=0
    )


def test_it_can_be_cut_exactly():
    model, batch = model_and_batch()
    backbone = Backbone(model).probe(batch)
    assert (backbone.path, backbone.n_blocks, backbone.width) == ("blocks", 3, 16)
    h, context = backbone.embed(batch)
    for block in model.blocks:
        h = block(h)  # a block is callable on the state alone
    assert torch.equal(backbone.readout(h, context), model(**batch))


@pytest.mark.parametrize("readout", [None, torch.nn.Linear(16, 2)], ids=["own", "refitted"])
def test_logits_shrink_outside_of_the_range(readout):
    model, batch = model_and_batch()
    backbone = Backbone(model, readout=readout).probe(batch)
    n = len(batch["x_num"])
    beyond = torch.linspace(0, 90, n)
    with backbone.frozen():
        inside, far = (backbone.logits(b) for b in (batch, batch | {"beyond_range": beyond}))
    torch.testing.assert_close(far, inside * torch.exp(-beyond)[:, None])


def test_width_must_fit_the_heads():
    with pytest.raises(ValueError, match="multiple of n_heads=4, got 30"):
        FTTransformer(2, [], 2, width=30)
