import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.calling import call_model, is_hugging_face, is_timm, read_logits
from sklearn_diffuq._backbones.discovery import find_blocks
from sklearn_diffuq.exceptions import BackboneError


def linears(n, width):
    return [nn.Linear(width, width) for _ in range(n)]


def test_lists_come_largest_first():
    model = nn.Module()
    model.many_small = nn.ModuleList(linears(9, 2))
    model.few_large = nn.Sequential(*linears(2, 20))
    model.middle = nn.ModuleList([nn.Sequential(*linears(3, 5)) for _ in range(2)])
    found = find_blocks(model)
    assert list(found) == ["few_large", "middle", "middle.0", "middle.1", "many_small"]
    assert found["few_large"] == list(model.few_large)


def test_lists_that_cannot_be_blocks_are_left_out():
    model = nn.Module()
    model.single = nn.ModuleList(linears(1, 8))
    model.mixed = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    model.weightless = nn.ModuleList([nn.ReLU(), nn.ReLU()])
    model.named = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    model.empty = nn.ModuleList()
    assert find_blocks(model) == {}


def test_of_equal_lists_the_outermost_comes_first():
    model = nn.Module()
    model.outer = nn.ModuleList([nn.Sequential(*linears(2, 4)), nn.Sequential()])
    assert list(find_blocks(model)) == ["outer", "outer.0"]


def test_lists_that_are_not_called_are_skipped(toy, ids):
    class WithUnused(toy):
        def __init__(self):
            super().__init__()
            self.unused = nn.ModuleList(linears(4, 50))

    model = WithUnused()
    assert next(iter(find_blocks(model))) == "unused"
    assert Backbone(model).probe(ids).path == "layers"


def test_model_kinds(bert, vit, toy):
    class OwnBert(type(bert)):
        pass

    assert is_hugging_face(bert)
    assert is_hugging_face(OwnBert(bert.config))
    assert not is_timm(bert)
    assert is_timm(vit)
    assert not is_hugging_face(vit)
    assert not is_timm(toy())
    assert not is_hugging_face(toy())


def test_import_loads_neither_transformers_nor_timm():
    code = (
        "import sys, sklearn_diffuq._backbones.backbone\n"
        "print([name for name in ('transformers', 'timm', 'skorch') if name in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "[]"


class Recorder(nn.Module):
    """Returns the arguments it was called with."""

    def forward(self, first, second=0):
        return {"first": first, "second": second}


def test_names_of_the_batch_match_parameters_or_its_values_go_in_order():
    one, two = torch.ones(1), torch.zeros(1)
    named = call_model(Recorder(), {"second": two, "first": one})
    assert named["first"] is one
    assert named["second"] is two
    ordered = call_model(Recorder(), {"pixels": two, "mask": one})
    assert ordered["first"] is two
    assert ordered["second"] is one


def test_decoders_keep_no_cache(gpt2, text_batch):
    assert gpt2.config.use_cache
    assert gpt2.eval()(**text_batch).past_key_values is not None
    assert call_model(gpt2, text_batch).past_key_values is None
    _, context = Backbone(gpt2).probe(text_batch).embed(text_batch)
    for args, kwargs in context.calls:
        values = (*args, *kwargs.values())
        assert not any(isinstance(value, transformers.Cache) for value in values)


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
def test_configured_outputs_leave_no_hooks(bert, tiny_config, text_batch, option):
    config = transformers.BertConfig(**tiny_config, attn_implementation="eager")
    setattr(config, option, True)
    model = transformers.BertForSequenceClassification(config).eval()
    backbone = Backbone(model).probe(text_batch)
    logits = backbone.logits(text_batch)
    twin = pickle.loads(pickle.dumps(backbone))  # transformers' hooks cannot be pickled
    assert torch.equal(twin.logits(text_batch), logits)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: logits,
        lambda logits: (logits, "extra"),
        lambda logits: {"logits": logits, "loss": None},
        lambda logits: SimpleNamespace(logits=logits),
        lambda logits: transformers.modeling_outputs.SequenceClassifierOutput(logits=logits),
    ],
    ids=["tensor", "tuple", "dict", "attribute", "ModelOutput"],
)
def test_logits_are_read_from_every_kind_of_output(wrap):
    logits = torch.randn(3, 4)
    assert read_logits(nn.Identity(), wrap(logits)) is logits
    assert read_logits(nn.Identity(), wrap(torch.randn(3, 5, 4))) is None


def test_outputs_without_logits():
    states = torch.randn(3, 5, 4)
    encoder_output = transformers.modeling_outputs.BaseModelOutputWithPooling(
        last_hidden_state=states, pooler_output=states[:, 0]
    )
    assert read_logits(nn.Identity(), encoder_output) is None
    assert read_logits(nn.Identity(), (None,)) is None


def test_pooled_features_of_timm_are_no_logits(vit):
    batch = {"x": torch.randn(2, 3, 16, 16)}
    vit.reset_classifier(0)
    assert vit(**batch).shape == (2, 16)
    assert Backbone(vit).probe(batch).n_outputs is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_become_single(dtype):
    logits = torch.randn(3, 4).to(dtype)
    read = read_logits(nn.Identity(), logits)
    assert read.dtype == torch.float32
    assert torch.equal(read.to(dtype), logits)
    assert read_logits(nn.Identity(), torch.randn(3, 4).double()).dtype == torch.float64


@pytest.mark.parametrize("path", ["layer", "layers.7", "head.bias"])
def test_unknown_path_lists_the_candidates(toy, path):
    with pytest.raises(BackboneError, match=r"not a submodule of Toy.*'layers' \(3 x ToyBlock\)"):
        Backbone(toy(), blocks=path)


@pytest.mark.parametrize("path", ["head", "layers.0"])
def test_path_of_something_else_lists_the_candidates(toy, path):
    with pytest.raises(BackboneError, match=r"must be a non-empty ModuleList.*'layers'"):
        Backbone(toy(), blocks=path)


def test_model_without_blocks():
    with pytest.raises(BackboneError, match="No blocks found in Linear.*blocks='dotted.path'"):
        Backbone(nn.Linear(2, 2))


def test_path_names_what_discovery_leaves_out(toy, toy_block, ids):
    single = toy(n_blocks=1).eval()
    assert Backbone(single, blocks="layers").probe(ids).n_blocks == 1

    class OtherBlock(toy_block):
        pass

    mixed = toy().eval()
    mixed.layers[1] = OtherBlock(8)
    for model in (single, mixed):
        with pytest.raises(BackboneError, match="No blocks found"):
            Backbone(model)
    assert Backbone(mixed, blocks="layers").probe(ids).n_blocks == 3


def test_path_overrules_discovery(toy, toy_block, ids):
    class TwoStages(toy):
        def __init__(self):
            super().__init__()
            self.early = nn.ModuleList([toy_block(8), toy_block(8)])

        def run(self, h, mask):
            for layer in self.early:
                h = layer(h, mask)
            return super().run(h, mask)

    model = TwoStages().eval()
    assert Backbone(model).probe(ids).path == "layers"
    backbone = Backbone(model, blocks="early").probe(ids)
    assert backbone.n_blocks == 2
    h, context = backbone.embed(ids)
    assert torch.equal(h, model.embedding(ids["ids"]))
    h = backbone.block(1, backbone.block(0, h, context), context)
    assert torch.equal(backbone.readout(h, context), model(**ids))
