"""Steps in one call against the same steps one by one."""

import pytest
import tiny_families
import torch
from timing import operations
from tiny_backbones import ALL, UNEQUAL
from tiny_objective import losses_of, objective_of
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.ft_transformer import FTTransformer
from sklearn_diffuq._path.input_moments import InputMoments
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._transition.batched_steps import batched_steps
from sklearn_diffuq._transition.closed_form_start import unified_transition


def _ft_transformer():
    torch.manual_seed(0)
    batch = {"x_num": torch.randn(6, 4), "x_cat": torch.randint(3, (6, 1))}
    return Backbone(FTTransformer(4, [3], 2, n_blocks=4).eval()).probe(batch), batch


def _family(kind, name):
    return tiny_families.cut(kind, name), tiny_families.built(kind, name)[1]


MODELS = ALL | {
    "ft-transformer": _ft_transformer,
    "llama": lambda: _family("Text, decoders", "Llama"),
    "qwen3": lambda: _family("Text, decoders", "Qwen3"),
    "deit3": lambda: _family("Images, timm", "DeiT III"),
}
# Kind and name of families whose steps have to go one by one, and why.
ONE_BY_ONE = {
    "layers see a window or all tokens": ("Text, decoders", "Gemma 3"),
    "positions go through the layers as well": ("Text, encoders", "DeBERTa-v3"),
    "experts get a choice of the tokens": ("Text, decoders", "Mixtral"),
    "a table of positions per block": ("Text, encoders", "UMT5 (encoder)"),
}


def _transition(backbone, n_steps, rank=3, more=()):
    steps = {*steps_of(time_grid(backbone.n_blocks, n_steps)), *more}
    transition = unified_transition(backbone, sorted(steps), None, InputMoments({}, {}))
    if rank is None:
        return transition
    low = unified_transition(backbone, sorted(steps), rank, InputMoments({}, {}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in low.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return low


def _results(transition, call):
    """Return means and the gradients of a weighted sum of them."""
    transition.zero_grad()
    means = call()
    weight = torch.randn(means.shape, generator=torch.Generator().manual_seed(2)).to(means)
    (means * weight).sum().backward()
    found = {n: p.grad.clone() for n, p in transition.named_parameters() if p.grad is not None}
    return means.detach(), found


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("name", MODELS)
def test_one_call_is_all_steps_and_their_gradients(name, rank):
    backbone, batch = MODELS[name]()
    modes = backbone.module.training
    transition = _transition(backbone, backbone.n_blocks, rank, more=[(0, 2)])
    grid = time_grid(backbone.n_blocks, backbone.n_blocks)
    with backbone.frozen():
        steps = batched_steps(transition, grid, batch)
        assert steps is not None
        h, context = backbone.embed(batch)
        tiled = steps.context(batch, context)
        generator = torch.Generator().manual_seed(0)
        starts = h + 0.3 * torch.randn((backbone.n_blocks, *h.shape), generator=generator)
        transition.double()
        context, tiled = (_in_double(c) for c in (context, tiled))
        starts = starts.double()
        together = _results(transition, lambda: steps(transition.merged(), starts, tiled))

        def one_by_one():
            merged = transition.merged()
            pairs = zip(starts, steps_of(grid), strict=True)
            return torch.stack([merged(start, interval, context) for start, interval in pairs])

        alone = _results(transition, one_by_one)
    torch.testing.assert_close(together[0], alone[0], atol=1e-10, rtol=1e-8)
    assert together[1].keys() == alone[1].keys()
    for key, gradient in alone[1].items():
        torch.testing.assert_close(together[1][key], gradient, atol=1e-9, rtol=1e-7, msg=key)
    assert backbone.module.training == modes
    assert all(p.dtype == torch.float32 for p in backbone.module.parameters())


def _in_double(context):
    def wide(value):
        if isinstance(value, torch.Tensor):
            return value.double() if value.is_floating_point() else value
        if isinstance(value, (tuple, list)):
            return type(value)(map(wide, value))
        return {k: wide(v) for k, v in value.items()} if isinstance(value, dict) else value

    calls = tuple((wide(args), wide(kwargs)) for args, kwargs in context.calls)
    return type(context)(context.batch, context.mask, calls, context.slots)


@pytest.mark.parametrize(("kind", "name"), ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_what_cannot_be_batched_goes_one_by_one(kind, name):
    backbone, batch = _family(kind, name)
    transition = _transition(backbone, backbone.n_blocks, None)
    grid = time_grid(backbone.n_blocks, backbone.n_blocks)
    with backbone.frozen():
        assert batched_steps(transition, grid, batch) is None


SINGLE = {
    "Text, encoders": {
        "DeBERTa", "DeBERTa-v3", "DeBERTa-v2 with convolution", "ModernBERT", "Longformer",
        "BigBird", "I-BERT", "UMT5 (encoder)",
    },
    "Text, decoders": {
        "GPT-Neo", "GPT-OSS", "Falcon", "Mixtral", "Qwen2-MoE", "Qwen3-MoE", "Qwen3-Next",
        "Qwen3.5", "Gemma 2", "Gemma 3", "ModernBERT decoder", "OLMo 3", "EXAONE 4", "DeepSeek-V2",
        "DeepSeek-V3", "MiniMax",
    },
    "Images, Hugging Face": {"BEiT", "data2vec vision"},
    "Audio": {"wav2vec 2.0 Conformer", "WavLM", "wav2vec-BERT 2.0"},
    "Images, timm": {
        "ViT with relative positions", "AIMv2", "BEiT", "BEiT v2", "EVA", "EVA-02", "XCiT",
        "ConViT",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", SINGLE)
def test_which_architectures_are_batched(kind):
    alone = set()
    for name in tiny_families.FAMILIES[kind]:
        backbone, batch = _family(kind, name)
        transition = _transition(backbone, backbone.n_blocks, None)
        grid = time_grid(backbone.n_blocks, backbone.n_blocks)
        with backbone.frozen():
            if batched_steps(transition, grid, batch) is None:
                alone.add(name)
    assert alone == SINGLE[kind]


@pytest.mark.parametrize("name", UNEQUAL)
def test_unequal_blocks_go_one_by_one(name):
    backbone, batch = UNEQUAL[name]()
    transition = _transition(backbone, backbone.n_blocks, None)
    with backbone.frozen():
        grid = time_grid(backbone.n_blocks, backbone.n_blocks)
        assert batched_steps(transition, grid, batch) is None


class _Block(nn.Module):
    """A block that mixes rows, or is scaled by its own setting or matrix."""

    def __init__(self, factor=1.0, over_rows=False, matrix=False):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.factor, self.over_rows = factor, over_rows
        if matrix:
            self.matrix = nn.Parameter(torch.randn(8, 8))

    def forward(self, h):
        h = h + self.factor * self.linear(h)
        if self.over_rows:
            h = h.roll(1, 0)
        return h @ self.matrix if hasattr(self, "matrix") else h


class _Model(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


@pytest.mark.parametrize(
    ("blocks", "is_batched"),
    [
        (lambda k: _Block(), True),
        (lambda k: _Block(factor=1.0 + k), False),
        (lambda k: _Block(over_rows=True), False),
        (lambda k: _Block(matrix=True), False),
    ],
    ids=["equal", "settings", "rows", "matrix"],
)
def test_structure_and_proof_decide(blocks, is_batched):
    torch.manual_seed(0)
    backbone = Backbone(_Model([blocks(k) for k in range(3)]), blocks="blocks")
    batch = {"x": torch.randn(5, 4, 8)}
    backbone.probe(batch)
    transition = _transition(backbone, 3, None)
    with backbone.frozen():
        steps = batched_steps(transition, time_grid(3, 3), batch)
    assert (steps is not None) is is_batched


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("name", ALL)
def test_losses_and_gradients_do_not_depend_on_the_way(name, epoch):
    found = []
    for is_batched in (True, False):
        objective = objective_of(name, sample_weight=[1.0, 2, 1, 3, 1, 1])
        if not is_batched:
            objective._batched = dict.fromkeys(objective.grids)
        losses = losses_of(objective, epoch)
        losses["loss"].backward()
        assert (objective._batched[objective.grids[0]] is not None) is is_batched
        named = objective.transition.named_parameters()
        found.append((float(losses["loss"].detach()), {n: p.grad for n, p in named}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for key, gradient in found[1][1].items():
        torch.testing.assert_close(found[0][1][key], gradient, atol=1e-5, rtol=1e-3, msg=key)


def test_a_teacher_forced_step_costs_a_few_blocks_and_one_forward(monkeypatch):
    def deep_bert(n=6):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=12, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=16, num_labels=2,
        )  # fmt: skip
        ids, mask = torch.randint(1, 50, (n, 7)), torch.ones(n, 7, dtype=torch.long)
        mask[0, 4:] = 0
        batch = {"input_ids": ids * mask, "attention_mask": mask}
        return Backbone(BertForSequenceClassification(config)).probe(batch), batch

    monkeypatch.setitem(ALL, "deep", deep_bert)
    objective = objective_of("deep")
    losses_of(objective, 0)["loss"].backward()
    step = operations(lambda: losses_of(objective, 0)["loss"].backward())
    backbone, batch = deep_bert()
    with backbone.frozen(), torch.no_grad():
        forward = operations(lambda: backbone.logits(batch))
        h, context = backbone.embed(batch)
    block = operations(lambda: backbone.block(0, h, context).sum().backward())
    assert step <= 2.5 * block + forward


@pytest.mark.parametrize("name", ALL)
def test_all_steps_are_compiled_once(name):
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph

    objective, plain = objective_of(name), objective_of(name)
    objective.transition.compile(backend=backend)
    for epoch in (0, 1, 3):
        compiled = losses_of(objective, epoch)["loss"]
        compiled.backward()
        expected = losses_of(plain, epoch)["loss"]
        assert float(compiled.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert len(graphs) == 1
    objective.transition._compiled_call_impl = None  # as the loop leaves it
    assert objective.transition.compile_options is None
