"""Which parameter of a model gets which input, and what is looked for inside of wrappers."""

import pytest
import torch
from torch import nn

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.calling import bind, call_model, inner_model
from sklearn_diffuq._backbones.loading import ModelInputs
from sklearn_diffuq.exceptions import BackboneError

TEXT = ["input_ids", "token_type_ids", "attention_mask"]


class Inside(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


class AnyKind(Inside):
    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class Keywords(Inside):
    def forward(self, **batch):
        return self.module(**batch)


class SomeNames(Inside):
    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        return self.module(input_ids, attention_mask=attention_mask, labels=labels, **kwargs)


class OwnNames(Inside):
    def forward(self, ids, mask, segments):
        return self.module(ids, mask, segments)


class OneOwnName(Inside):
    def forward(self, ids, attention_mask=None):
        return self.module(ids, attention_mask)


class NoSegments(Inside):
    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.module(input_ids, attention_mask, labels=labels)


class Whole(Inside):
    def forward(self, batch):
        return self.module(**batch)


def named(names):
    return [], {name: name for name in names}


@pytest.mark.parametrize(
    ("wrapper", "names", "expected"),
    [
        (AnyKind, TEXT, named(TEXT)),
        (Keywords, TEXT, named(TEXT)),
        (SomeNames, TEXT, named(TEXT)),
        (OwnNames, ["mask", "ids", "segments"], named(["mask", "ids", "segments"])),
        (OwnNames, TEXT, (TEXT, {})),  # in the order of the batch
        (OneOwnName, ["input_ids", "attention_mask"], (["input_ids"], named(TEXT[2:])[1])),
        (NoSegments, ["input_ids", "attention_mask"], named(["input_ids", "attention_mask"])),
        (Whole, ["pixel_values"], (["pixel_values"], {})),
    ],
)
def test_inputs_go_by_name_where_there_are_names(bert, wrapper, names, expected):
    assert bind(wrapper(bert), names) == expected


@pytest.mark.parametrize(
    ("wrapper", "names"),
    [
        (NoSegments, TEXT),
        (NoSegments, ["input_ids", "attention_mask", "token_type_ids"]),  # would be the labels
        (Whole, TEXT),
        (OneOwnName, TEXT),
        (OwnNames, ["input_ids", "attention_mask"]),
        (OwnNames, ["ids", "segments", "attention_mask"]),
    ],
)
def test_a_guess_is_refused_and_the_parameters_are_named(bert, wrapper, names):
    with pytest.raises(BackboneError, match=rf"{wrapper.__name__} gets the inputs input_ids|ids.*"):
        bind(wrapper(bert), names)


def test_one_image_is_the_first_parameter_whatever_its_name(vit):
    pixels = torch.randn(2, 3, 16, 16)
    vit.eval()
    for module in (vit, nn.DataParallel(vit), AnyKind(vit)):
        assert torch.equal(call_model(module, {"pixel_values": pixels}), vit(pixels))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, AnyKind, Keywords, SomeNames])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_wrappers_are_looked_through(request, text_batch, kind, wrap):
    model = request.getfixturevalue(kind).eval()
    if kind == "bert":
        text_batch = {
            "input_ids": text_batch["input_ids"],
            "token_type_ids": text_batch["attention_mask"].flip(1),
            "attention_mask": text_batch["attention_mask"],
        }
    wrapped = wrap(model)
    assert inner_model(wrapped) is model
    assert ModelInputs.of(wrapped) == ModelInputs.of(model)
    logits = Backbone(wrapped).probe(text_batch).logits(text_batch)
    assert torch.equal(logits, model(**text_batch).logits)


class Thin(nn.Module):
    """Names its inputs, so that an option cannot be handed on."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, input_ids, attention_mask):
        return self.net(input_ids, attention_mask=attention_mask).logits


def test_a_decoder_inside_of_a_module_keeps_no_cache(gpt2, text_batch):
    thin = Thin(gpt2.eval())
    assert torch.equal(
        Backbone(thin).probe(text_batch).logits(text_batch), gpt2(**text_batch).logits
    )
    assert gpt2.config.use_cache


def test_what_is_compiled_in_place_runs_as_it_was_written(bert, text_batch):
    expected = bert.eval()(**text_batch).logits
    for layer in bert.bert.encoder.layer:
        layer.compile()
    bert.compile()
    assert torch.equal(Backbone(bert).probe(text_batch).logits(text_batch), expected)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_peft_models_are_called_by_name(request, text_batch, kind):
    peft = pytest.importorskip("peft")
    model = request.getfixturevalue(kind).eval()
    if kind == "bert":
        mask = text_batch.pop("attention_mask")
        text_batch |= {"token_type_ids": mask.flip(1), "attention_mask": mask}
    targets = ["query", "value"] if kind == "bert" else ["c_attn"]
    options = {"target_modules": targets, "fan_in_fan_out": kind == "gpt2"}
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, **options)
    adapted = peft.get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter)
    expected = adapted(**text_batch).logits
    assert inner_model(adapted) is model
    assert torch.equal(Backbone(adapted).probe(text_batch).logits(text_batch), expected)
    merged = adapted.merge_and_unload()
    logits = Backbone(merged).probe(text_batch).logits(text_batch)
    torch.testing.assert_close(logits, expected)
