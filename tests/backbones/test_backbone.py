import copy
import io
import json
import pickle
import sys
import threading

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._inputs.encode_mapping import encode_mapping
from sklearn_diffuq._state import State
from sklearn_diffuq.exceptions import BackboneError


def replay(backbone, batch):
    """Logits by embedding, every block and readout."""
    with backbone.frozen():
        h, context = backbone.embed(batch)
        for k in range(backbone.n_blocks):
            h = backbone.block(k, h, context)
        return backbone.readout(h, context)


def condition(model):
    """Everything about a model that a method must leave as it was."""
    hooks = [
        (name, list(vars(module)[name]))
        for module in model.modules()
        for name in vars(module)
        if name.endswith("_hooks")
    ]
    return {
        "hooks": hooks,
        "forward": ["forward" in vars(module) for module in model.modules()],
        "attributes": [set(vars(module)) for module in model.modules()],
        "training": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [parameter.grad for parameter in model.parameters()],
        "state": {name: value.clone() for name, value in model.state_dict().items()},
    }


def assert_unchanged(model, before):
    after = condition(model)
    states = before.pop("state"), after.pop("state")
    assert before == after
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


METHODS = {
    "probe": lambda backbone, batch: backbone.probe(batch),
    "logits": lambda backbone, batch: backbone.logits(batch),
    "embed": lambda backbone, batch: backbone.embed(batch),
    "block": lambda backbone, batch: backbone.block(1, *backbone.embed(batch)),
    "readout": lambda backbone, batch: backbone.readout(*backbone.embed(batch)),
    "features": lambda backbone, batch: backbone.features(*backbone.embed(batch)),
    "frozen": replay,
    "states": lambda backbone, batch: backbone.states(*backbone.embed(batch)),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_leave_the_model_as_it_was(model_and_batch, method):
    model, batch = model_and_batch
    before = condition(model)
    backbone = Backbone(model).probe(batch)
    METHODS[method](backbone, batch)
    assert_unchanged(model, before)


@pytest.mark.parametrize("where", ["embedding", "layers.1.mix", "head"])
@pytest.mark.parametrize("inside", ["frozen", "bare"])
@pytest.mark.parametrize("method", METHODS)
def test_errors_in_the_model_leave_it_as_it_was(toy, ids, where, inside, method):
    model = toy()
    broken = model.get_submodule(where)
    broken.armed = False
    original = type(broken).forward

    class Broken(type(broken)):
        def forward(self, *args):
            if self.armed:
                raise ZeroDivisionError("the model failed")
            return original(self, *args)

    broken.__class__ = Broken
    model.eval().head.training = True
    model.head.bias.requires_grad_(False)
    backbone = Backbone(model).probe(ids)
    broken.armed = True
    before = condition(model)
    try:
        if inside == "frozen":
            with backbone.frozen():
                METHODS[method](backbone, ids)
        else:
            METHODS[method](backbone, ids)
    except ZeroDivisionError:
        failed = True
    else:
        failed = False
    assert_unchanged(model, before)
    # Blocks are not run by the embedding and the readout, only by the whole model.
    runs_blocks = method in {"probe", "logits", "block", "frozen", "states"}
    assert failed == (runs_blocks if where == "layers.1.mix" else True)
    broken.armed = False
    assert torch.equal(replay(backbone, ids), backbone.logits(ids))


def test_failed_probe_keeps_the_last_cut(toy, ids):
    backbone = Backbone(toy().eval()).probe(ids)
    expected = replay(backbone, ids)
    with pytest.raises(ValueError, match="looks something up"):
        backbone.probe({"ids": ids["ids"] + 100})
    assert torch.equal(replay(backbone, ids), expected)


def test_owner_replaced_forward_survives(toy, ids):
    model = toy().eval()
    original = model.layers[1].forward
    model.layers[1].forward = lambda h, mask: original(h, mask) * 2
    replaced = model.layers[1].forward
    backbone = Backbone(model).probe(ids)
    assert model.layers[1].forward is replaced
    assert torch.equal(replay(backbone, ids), model(**ids))
    assert model.layers[1].forward is replaced


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda backbone: pickle.loads(pickle.dumps(backbone)),
        copy.deepcopy,
        lambda backbone: joblib.load(_dumped(backbone)),
    ],
    ids=["pickle", "deepcopy", "joblib"],
)
def test_copies_give_identical_results(model_and_batch, duplicate):
    model, batch = model_and_batch
    backbone = Backbone(model, readout=nn.Linear(Backbone(model).probe(batch).width, 2))
    for original in (Backbone(model).probe(batch), backbone.probe(batch)):
        twin = duplicate(original)
        assert twin.module is not model
        assert twin.blocks[0] is twin.module.get_submodule(twin.path)[0]
        assert twin.n_outputs == original.n_outputs
        assert torch.equal(replay(twin, batch), replay(original, batch))
        with torch.no_grad():
            for parameter in twin.module.parameters():
                parameter.zero_()
        assert not torch.equal(replay(twin, batch), replay(original, batch))


def _dumped(backbone):
    file = io.BytesIO()
    joblib.dump(backbone, file)
    file.seek(0)
    return file


def test_clone_is_the_object_itself(toy, ids):
    backbone = Backbone(toy()).probe(ids)
    assert clone(backbone) is backbone


def test_order_of_the_batch_is_free_where_names_match(bert, text_batch):
    backbone = Backbone(bert).probe(text_batch)
    reordered = dict(reversed(text_batch.items()))
    assert list(reordered) != list(text_batch)
    assert torch.equal(replay(backbone, text_batch), replay(backbone, reordered))


def test_smaller_batches_than_the_probed_one(model_and_batch):
    model, batch = model_and_batch
    backbone = Backbone(model).probe(batch)
    smaller = {name: value[1:] for name, value in batch.items()}
    if "x" not in batch:  # texts may be shorter too
        smaller = {name: value[:, :4] for name, value in smaller.items()}
    model.eval()
    assert torch.equal(replay(backbone, smaller), backbone.logits(smaller))


def test_tiled_batches_carry_tiled_states(model_and_batch):
    model, batch = model_and_batch
    backbone = Backbone(model).probe(batch)
    tiled = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in batch.items()}
    with backbone.frozen():
        h, context = backbone.embed(batch)
        shifted = torch.cat([h, h + torch.randn_like(h)])
        _, tiled_context = backbone.embed(tiled)
        for k in range(3):
            h = backbone.block(k, h, context)
            shifted = backbone.block(k, shifted, tiled_context)
        logits, tiled_logits = (
            backbone.readout(h, context),
            backbone.readout(shifted, tiled_context),
        )
    torch.testing.assert_close(tiled_logits[:3], logits)
    assert not torch.allclose(tiled_logits[3:], logits)


@pytest.mark.parametrize("frozen", [True, False])
def test_threads_share_a_model(toy, frozen):
    model = toy().eval()
    batches = [{"ids": torch.randint(0, 20, (n, n))} for n in (2, 3, 4)]
    # Two backbones on one module: the lock has to be the module's.
    backbones = [Backbone(model).probe(batches[0]), Backbone(model).probe(batches[0])]
    expected = [model(**batch).detach() for batch in batches]
    wrong = []

    def work(k):
        backbone, batch = backbones[k % 2], batches[k]
        for _ in range(60):
            try:
                if frozen:
                    got = replay(backbone, batch)
                    if got.requires_grad:
                        wrong.append("parameters thawed by another thread")
                else:
                    h, context = backbone.embed(batch)
                    for j in range(3):
                        h = backbone.block(j, h, context)
                    got = backbone.readout(h, context)
                if not (torch.equal(got, expected[k])):
                    wrong.append("wrong logits")
                if not torch.equal(backbone.logits(batch), expected[k]):
                    wrong.append("wrong native logits")
            except Exception as error:
                wrong.append(repr(error))

    before = condition(model)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert_unchanged(model, before)


def test_gradients_are_those_of_the_native_model(model_and_batch):
    model, batch = model_and_batch
    backbone = Backbone(model).probe(batch)
    weights = torch.randn(3, 4)
    with backbone.frozen():
        leaves = []

        def cut_graph(module, args, kwargs):
            leaves.append(args[0].detach().requires_grad_())
            return (leaves[0], *args[1:]), kwargs

        handle = backbone.blocks[1].register_forward_pre_hook(cut_graph, with_kwargs=True)
        try:
            (backbone.logits(batch) * weights).sum().backward()
        finally:
            handle.remove()

        h, context = backbone.embed(batch)
        leaf = backbone.block(0, h, context).detach().requires_grad_()
        h = backbone.block(2, backbone.block(1, leaf, context), context)
        (backbone.readout(h, context) * weights).sum().backward()
    assert leaf.grad.abs().max() > 0
    torch.testing.assert_close(leaf.grad, leaves[0].grad)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_restores_mixed_flags(toy, ids):
    model, readout = toy(), nn.Sequential(nn.Linear(8, 2), nn.Dropout())
    model.layers[1].eval()
    model.layers[2].dropout.eval()
    model.head.weight.requires_grad_(False)
    readout[0].bias.requires_grad_(False)
    backbone = Backbone(model, readout=readout).probe(ids)
    before = condition(model), condition(readout)

    def all_frozen():
        return not any(
            module.training or any(p.requires_grad for p in module.parameters())
            for root in (model, readout)
            for module in root.modules()
        )

    with backbone.frozen():
        with backbone.frozen():
            assert all_frozen()
        assert all_frozen()
    assert_unchanged(model, before[0])
    assert_unchanged(readout, before[1])

    before = condition(model), condition(readout)
    with pytest.raises(KeyboardInterrupt), backbone.frozen():
        raise KeyboardInterrupt
    assert_unchanged(model, before[0])
    assert_unchanged(readout, before[1])


def test_frozen_calls_no_overridden_mode(toy, ids):
    class Merging(toy):  # as layers do that fold an adapter into their weights for inference
        def train(self, mode=True):
            with torch.no_grad():
                self.head.weight += 1
            return super().train(mode)

    model = Merging()
    before = condition(model)
    with Backbone(model).probe(ids).frozen():
        assert not any(module.training for module in model.modules())
    assert_unchanged(model, before)


def test_outside_of_frozen_the_model_runs_in_its_own_mode(toy, ids):
    model = toy().train()
    backbone = Backbone(model).probe(ids)
    h, context = backbone.embed(ids)
    assert h.requires_grad
    assert not torch.equal(backbone.block(0, h, context), backbone.block(0, h, context))
    with backbone.frozen():
        h, context = backbone.embed(ids)
        assert not h.requires_grad
        assert torch.equal(backbone.block(0, h, context), backbone.block(0, h, context))


def test_dropped_blocks_are_noticed(toy, ids):
    class LayerDrop(toy):
        def run(self, h, mask):
            for k, layer in enumerate(self.layers):
                h = h if self.training and k == 1 else layer(h, mask)
            return h

    backbone = Backbone(LayerDrop().train()).probe(ids)
    with pytest.raises(BackboneError, match=r"called 2 of its 3 blocks.*frozen"):
        backbone.embed(ids)


def test_block_can_be_replaced_for_one_call(bert, text_batch):
    backbone = Backbone(bert).probe(text_batch)
    halved = {name: value / 2 for name, value in backbone.blocks[1].named_parameters()}
    reference = copy.deepcopy(backbone.blocks[1]).eval()
    reference.load_state_dict(halved, strict=False)

    def call(*args, **kwargs):
        return torch.func.functional_call(backbone.blocks[1], halved, args, kwargs)

    with backbone.frozen():
        h, context = backbone.embed(text_batch)
        got = backbone.block(1, h, context, call=call)
        args, kwargs = context.arguments(1, h)
        assert torch.equal(got, reference(*args, **kwargs))
        assert not torch.equal(got, backbone.block(1, h, context))


def test_tuple_outputs_keep_their_extras(toy, toy_block, ids):
    class WithExtras(toy_block):
        def forward(self, h, mask):
            return super().forward(h, mask), h.mean(), "extra"

    class Unpacking(toy):
        def run(self, h, mask):
            for layer in self.layers:
                h, _, _ = layer(h, mask)
            return h

    model = Unpacking(block=WithExtras).eval()
    backbone = Backbone(model).probe(ids)
    assert isinstance(backbone.block(0, *backbone.embed(ids)), torch.Tensor)
    assert torch.equal(replay(backbone, ids), model(**ids))


def test_features_are_the_masked_mean_of_normalised_tokens(bert, text_batch):
    backbone = Backbone(bert).probe(text_batch)
    _, context = backbone.embed(text_batch)
    h = torch.randn(3, 9, 16) * 5 + 2
    got = backbone.features(h, context).numpy()
    for row, length in enumerate([9, 6, 2]):
        tokens = h[row, :length].double().numpy()
        centred = tokens - tokens.mean(1, keepdims=True)
        normalised = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(got[row], normalised.mean(0), rtol=1e-4, atol=1e-5)
    h[1, 6:] = torch.nan
    assert np.array_equal(backbone.features(h, context).numpy(), got)


def test_own_readout_replaces_the_head(model_and_batch):
    model, batch = model_and_batch
    native = Backbone(model).probe(batch)
    readout = nn.Sequential(nn.Linear(native.width, 7))
    backbone = Backbone(model, readout=readout).probe(batch)
    assert backbone.n_outputs is not None
    assert backbone.n_outputs == 7
    with backbone.frozen():
        h, context = native.embed(batch)
        for k in range(3):
            h = native.block(k, h, context)
        expected = readout(native.features(h, context))
        assert torch.equal(backbone.logits(batch), expected)
        assert torch.equal(backbone.readout(h, context), expected)


def test_encoder_without_head(bert, text_batch):
    backbone = Backbone(bert.bert).probe(text_batch)
    assert backbone.n_outputs is None
    assert backbone.n_outputs is None
    h, context = backbone.embed(text_batch)
    assert backbone.features(backbone.block(0, h, context), context).shape == (3, 16)
    for call in (lambda: backbone.logits(text_batch), lambda: backbone.readout(h, context)):
        with pytest.raises(BackboneError, match="no logits of shape.*readout="):
            call()


@pytest.mark.parametrize(
    "use", ["blocks", "n_blocks", "width", "n_outputs", "n_block_parameters", "path"]
)
def test_attributes_need_a_probe(toy, use):
    with pytest.raises(BackboneError, match=r"call probe\(batch\)"):
        getattr(Backbone(toy()), use)


def test_embed_needs_a_probe(toy, ids):
    with pytest.raises(BackboneError, match=r"call probe\(batch\)"):
        Backbone(toy()).embed(ids)


def test_probe_describes_the_cut(toy, ids):
    model = toy(width=6, n_blocks=2)
    backbone = Backbone(model).probe(ids)
    assert backbone.path == "layers"
    assert backbone.blocks == list(model.layers)
    assert (backbone.n_blocks, backbone.width, backbone.n_outputs) == (2, 6, 4)


# States, columns and rows -----------------------------------------------------------------------


def test_states_are_the_embedding_and_what_follows_each_block(model_and_batch):
    model, batch = model_and_batch
    backbone = Backbone(model).probe(batch)
    with backbone.frozen():
        h, context = backbone.embed(batch)
        states = backbone.states(h, context)
        assert len(states) == backbone.n_blocks + 1
        for k, state in enumerate(states):
            assert torch.equal(state, h)
            h = backbone.block(k, h, context) if k < backbone.n_blocks else h


def test_advance_applies_the_blocks_between(model_and_batch):
    model, batch = model_and_batch
    backbone = Backbone(model).probe(batch)
    with backbone.frozen():
        h, context = backbone.embed(batch)
        states = backbone.states(h, context)
        assert torch.equal(backbone.advance(states[0], context), states[3])
        assert torch.equal(backbone.advance(states[1], context, 1, 3), states[3])
        assert torch.equal(backbone.advance(states[0], context, stop=2), states[2])
        assert backbone.advance(states[1], context, 1, 1) is states[1]


def test_device_is_that_of_the_model(toy):
    assert Backbone(toy()).device == torch.device("cpu")
    assert Backbone(toy().to("meta")).device == torch.device("meta")


@pytest.mark.parametrize(
    ("columns", "native", "expected"),
    [
        (None, [[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]),
        ([2, 0], [[1.0, 2.0, 3.0]], [[3.0, 1.0]]),
        ([0, 1], [[5.0]], [[0.0, 5.0]]),
        ([1, 0], [[5.0]], [[5.0, 0.0]]),
    ],
)
def test_align_chooses_the_logits_of_the_classes(toy, columns, native, expected):
    aligned = Backbone(toy(), columns=columns).align(torch.tensor(native))
    assert aligned.tolist() == expected


def test_native_readout_keeps_all_logits(toy, ids):
    backbone = Backbone(toy().eval(), columns=[3, 1]).probe(ids)
    h, context = backbone.embed(ids)
    states = backbone.states(h, context)
    native = backbone.native_readout(states[-1], context)
    assert torch.equal(native, backbone.module(**ids))
    assert torch.equal(backbone.readout(states[-1], context), native[:, [3, 1]])
    assert torch.equal(backbone.logits(ids), native[:, [3, 1]])
    assert backbone.n_outputs == 2


def test_map_rows_keeps_the_order_and_changes_no_flag(toy, ids):
    model = toy().train()
    backbone = Backbone(model).probe(ids)
    inputs = encode_mapping({"ids": np.random.default_rng(0).integers(0, 20, (150, 5))})
    logits = backbone.map_rows(backbone.logits, inputs)
    assert logits.dtype == np.float64
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        expected = model.eval()(**inputs.batch(range(150)))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("own_readout", [False, True])
def test_a_cut_comes_back_through_json(model_and_batch, own_readout):
    model, batch = model_and_batch
    width = Backbone(model).probe(batch).width
    readout = nn.Linear(width, 7, bias=False) if own_readout else None
    backbone = Backbone(model, readout=readout, columns=[2, 0]).probe(batch)
    state = backbone.to_state()
    state = State(json.loads(json.dumps(state.config)), state.tensors)
    loaded = Backbone.from_state(state, copy.deepcopy(model))
    assert torch.equal(replay(loaded, batch), replay(backbone, batch))
    for name in ("path", "n_blocks", "width", "n_outputs", "columns"):
        assert getattr(loaded, name) == getattr(backbone, name)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(BackboneError, match="is not the one that was saved"):
        Backbone.from_state(state, model)
