import pytest
import torch
from tiny_backbones import ALL, vit

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq.baselines._last_layer import (
    aligned_weights,
    find_last_layer,
    last_features,
)


def check(backbone, batch):
    name = find_last_layer(backbone, batch)
    weight, bias = aligned_weights(backbone, name)
    with backbone.frozen():
        features = last_features(backbone, name)(batch)
        expected = backbone.logits(batch).double()
    torch.testing.assert_close(features @ weight.T + bias, expected, atol=1e-5, rtol=1e-5)
    return name


@pytest.mark.parametrize(("kind", "name"), [("vit", "module.head"), ("bert", "module.classifier")])
def test_logits_are_linear_in_the_features(kind, name):
    assert check(*ALL[kind]()) == name


def test_classes_in_another_order():
    backbone, batch = vit()
    aligned = Backbone(backbone.module).probe(batch)
    aligned.columns = [2, 0]
    check(aligned, batch)


def test_a_single_logit_counts_as_two():
    backbone, batch = vit()
    backbone.module.reset_classifier(1)
    aligned = Backbone(backbone.module).probe(batch)
    aligned.columns = [0, 1]
    check(aligned, batch)


def test_a_readout_of_ours():
    backbone, batch = vit()
    aligned = Backbone(backbone.module, readout=torch.nn.Linear(16, 5)).probe(batch)
    assert check(aligned, batch) == "readout"


def test_logits_of_single_tokens_are_not_linear_in_features_of_rows():
    backbone, batch = ALL["gpt2"]()
    assert find_last_layer(backbone, batch) is None
    assert not any(m._forward_hooks for m in backbone.module.modules())
