import numpy as np
import pytest
import torch
from scipy.special import softmax
from tiny_backbones import ALL, vit

from sklearn_diffuq import TransformerClassifier
from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._wrapped.wrap import label
from sklearn_diffuq.baselines._last_layer import find_last_layer, with_last_layer
from sklearn_diffuq.exceptions import ReadoutWarning


def check(backbone, batch):
    last_layer = find_last_layer(backbone, batch)
    weight, bias = last_layer.weights()
    with backbone.frozen():
        features = last_layer.features(batch)
        expected = backbone.logits(batch).double()
    torch.testing.assert_close(features @ weight.T + bias, expected, atol=1e-5, rtol=1e-5)
    return last_layer.name


@pytest.mark.parametrize(("kind", "name"), [("vit", "module.head"), ("bert", "module.classifier")])
def test_logits_are_linear_in_the_features(kind, name):
    assert check(*ALL[kind]()) == name


def test_classes_in_another_order():
    backbone, batch = vit()
    aligned = Backbone(backbone.module, columns=[2, 0]).probe(batch)
    check(aligned, batch)


def test_a_single_logit_counts_as_two():
    backbone, batch = vit()
    backbone.module.reset_classifier(1)
    aligned = Backbone(backbone.module, columns=[0, 1]).probe(batch)
    check(aligned, batch)


def test_a_readout_of_ours():
    backbone, batch = vit()
    aligned = Backbone(backbone.module, readout=torch.nn.Linear(16, 5)).probe(batch)
    assert check(aligned, batch) == "readout"


def test_logits_of_single_tokens_are_not_linear_in_features_of_rows():
    backbone, batch = ALL["gpt2"]()
    assert find_last_layer(backbone, batch) is None
    assert not any(m._forward_hooks for m in backbone.module.modules())


def test_a_model_without_a_last_layer_gets_a_readout():
    backbone, batch = ALL["gpt2"](24)
    X, y = {name: value.numpy() for name, value in batch.items()}, np.arange(24) % 2
    given = TransformerClassifier(backbone.module, device="cpu").fit(X, y)
    training = label(given, X, y, np.ones(24))
    with pytest.warns(ReadoutWarning, match="does not end in one linear layer"):
        wrapped, last_layer = with_last_layer(given, training)
    assert given.backbone_.custom_readout is None
    assert last_layer.layer is wrapped.backbone_.custom_readout
    features = last_layer.all_features(training.inputs)
    weight, bias = (part.numpy() for part in last_layer.weights())
    np.testing.assert_allclose(
        softmax(features @ weight.T + bias, axis=1), wrapped.predict_proba(X), atol=1e-6
    )


def test_a_last_layer_is_left_alone(images):
    training = label(images.trained, images.X, images.y, np.ones(200))
    wrapped, last_layer = with_last_layer(images.trained, training)
    assert wrapped is images.trained
    assert last_layer.layer is wrapped.backbone_.module.head
