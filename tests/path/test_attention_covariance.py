"""The Gaussian-process reading of frozen attention against dense float64 answers."""

import json
from copy import deepcopy

import pytest
import torch
from tiny_backbones import ALL

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import RealTokens
from sklearn_diffuq._path.attention_covariance import AttentionVariance, attention_covariance
from sklearn_diffuq._path.distance import GaussianProcessVariance
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._state import State
from sklearn_diffuq.exceptions import BackboneError


def _covariance(name, rank=16, n_steps=None):
    backbone, batch = ALL[name](40)
    steps = steps_of(time_grid(backbone.n_blocks, n_steps or backbone.n_blocks))
    with backbone.frozen():
        covariance = attention_covariance(
            backbone, [batch], steps, rank, torch.Generator().manual_seed(0)
        )
    return backbone, batch, covariance


def _rho(process, h, mask=None):
    return process.variances([process], [process.look(h, RealTokens.of(mask))])[:, 0]


def _qkv(name, block, h):
    """Return queries, keys and values (n, t, heads, d_head) by the code of the architecture."""
    if name == "vit":
        q, k, v = block.attn.qkv(block.norm1(h)).chunk(3, -1)
    else:
        attention = block.attention.self
        q, k, v = attention.query(h), attention.key(h), attention.value(h)
    return tuple(x.unflatten(2, (2, 8)) for x in (q, k, v))


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_variance_is_the_posterior_variance_at_the_queries(name):
    backbone, batch, covariance = _covariance(name)
    with backbone.frozen(), torch.no_grad():
        h, context = backbone.embed(batch)
        h = backbone.block(0, h, context)
        q, _, _ = _qkv(name, backbone.blocks[1], h)
        process = covariance.distances[covariance.blocks.index(1)].process
        found = _rho(process, h, context.mask)
    mask = torch.ones(h.shape[:2]) if context.mask is None else context.mask
    for row in (0, 5):
        total = []
        for head in range(2):
            keys, length = process.heads[head].states, process.heads[head].length
            kernel = torch.exp(-torch.cdist(keys, keys) / length) + 0.1 * torch.eye(len(keys))
            for token in torch.nonzero(mask[row])[:, 0]:
                k = torch.exp(-torch.cdist(q[row, token, head][None].double(), keys) / length)
                total.append(1 - k @ torch.linalg.solve(kernel, k.T))
        assert float(found[row]) == pytest.approx(float(torch.stack(total).mean()), abs=1e-6)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_directions_are_the_values_through_the_output_matrix(name):
    backbone, batch, covariance = _covariance(name)
    with backbone.frozen(), torch.no_grad():
        h, context = backbone.embed(batch)
        block = backbone.blocks[0]
        _, _, v = _qkv(name, block, h)
    output = block.attn.proj if name == "vit" else block.attention.output.dense
    mask = torch.ones(h.shape[:2]) if context.mask is None else context.mask
    pooled = (v * mask[..., None, None]).sum(1) / mask.sum(1)[:, None, None]
    shared, token = 0.0, 0.0
    for head in range(2):
        matrix = output.weight.detach()[:, head * 8 : (head + 1) * 8].double()
        shared = shared + matrix @ torch.cov(pooled[:, head].double().T, correction=0) @ matrix.T
        values = v[mask.bool()][:, head].double()
        token = token + matrix @ torch.cov(values.T, correction=0) @ matrix.T
    factor = covariance.factor((0, 1)).double()
    torch.testing.assert_close(factor @ factor.T, shared, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        covariance.token_variance((0, 1)).double(), token.diagonal(), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_an_attention_variance_is_built_again_from_json_and_tensors(name):
    backbone, batch, covariance = _covariance(name)
    process = covariance.distances[0].process
    state = process.to_state()
    again = AttentionVariance.from_state(
        State(json.loads(json.dumps(state.config)), deepcopy(state.tensors))
    )
    with backbone.frozen(), torch.no_grad():
        h, context = backbone.embed(batch)
    assert torch.equal(_rho(again, h, context.mask), _rho(process, h, context.mask))
    assert (again.norm_weight is None) == (name == "bert")
    assert len(again.heads) == 2


def test_queries_without_a_bias_are_built_again_and_heads_keep_their_order():
    keys = torch.randn(12, 20, 2, generator=torch.Generator().manual_seed(0))
    heads = [GaussianProcessVariance.given(of_head) for of_head in keys]
    process = AttentionVariance(torch.randn(24, 24), None, None, None, 0.0, heads)
    again = AttentionVariance.from_state(process.to_state())
    h = torch.randn(3, 5, 24)
    assert torch.equal(_rho(again, h), _rho(process, h))
    for found, expected in zip(again.heads, heads, strict=True):
        assert torch.equal(found.states, expected.states)


def test_a_step_of_several_blocks_adds_their_variances():
    _, _, fine = _covariance("vit")
    _, _, coarse = _covariance("vit", n_steps=2)
    expected = fine.token_variance((0, 1)) + fine.token_variance((1, 2))
    torch.testing.assert_close(coarse.token_variance((0, 2)), expected)
    assert coarse.blocks == (0, 2)  # the last state has no attention to come


def test_attention_that_cannot_be_read_is_refused_with_the_alternatives():
    backbone, batch = ALL["gpt2"]()
    with backbone.frozen(), pytest.raises(BackboneError, match="'gp' or 'constant'"):
        attention_covariance(backbone, [batch], [(0, 1)], 2, torch.Generator())


def test_a_norm_that_is_not_a_layer_norm_is_refused():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads = 2
            self.qkv, self.proj = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)

        def forward(self, h):
            return h + self.proj(self.qkv(h * h.abs()).chunk(3, -1)[2])

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([Block(), Block()])
            self.head = torch.nn.Linear(8, 2)

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean(1))

    batch = {"x": torch.randn(5, 3, 8)}
    backbone = Backbone(Model()).probe(batch)
    with backbone.frozen(), pytest.raises(BackboneError, match="before its attention"):
        attention_covariance(backbone, [batch], [(0, 1), (1, 2)], 2, torch.Generator())
