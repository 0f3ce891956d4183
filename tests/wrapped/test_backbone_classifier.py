import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator

from sklearn_diffuq._backbones.backbone import Backbone, stream
from sklearn_diffuq._backbones.ft_transformer import FTTransformer
from sklearn_diffuq._inputs.encoding import encode_table
from sklearn_diffuq._inputs.rows import check_labels, held_out_rows
from sklearn_diffuq._training.classification import train_classifier
from sklearn_diffuq._wrapped.backbone_classifier import BackboneClassifier, resolve_device


class Owner(BaseEstimator):
    """Stands for the estimator that is named in messages."""


def test_labels_of_rows_without_weight_do_not_count():
    classes, target, weight, kept = check_labels(Owner(), ["c", "a", "b", "c"], [1, 2, 0, 3])
    assert classes.tolist() == ["a", "c"]
    assert target.tolist() == [1, 0, 1]
    assert weight.tolist() == [0.5, 1.0, 1.5]  # mean 1
    assert kept.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("y", "weight", "message"),
    [
        (None, None, "requires y to be passed"),
        ([1, 1], None, "at least two classes"),
        ([0, 1], [1, 0], "at least two classes"),
        ([0, 1], [0, 0], "zero"),
        ([0, 1], [1, -1], "Negative"),
        ([0.5, 1.5], None, "continuous"),
        ([0, np.inf], None, "infinity"),
    ],
)
def test_label_errors(y, weight, message):
    with pytest.raises(ValueError, match=message):
        check_labels(Owner(), y, weight)


def test_held_out_rows_come_from_every_class_in_proportion():
    target = np.repeat([0, 1, 2], [700, 200, 100])
    held = held_out_rows(target, 0.1, np.random.default_rng(0))
    assert len(set(held)) == len(held)
    assert np.abs(np.bincount(target[held]) - [70, 20, 10]).max() <= 1
    other = held_out_rows(target, 0.1, np.random.default_rng(1))
    assert set(held) != set(other)
    assert len(held_out_rows(target, 0, np.random.default_rng(0))) == 0


def test_the_only_row_of_a_class_is_never_held_out():
    target = np.arange(10)
    for seed in range(5):
        assert len(held_out_rows(target, 0.5, np.random.default_rng(seed))) == 0


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU was found"):
            resolve_device("cuda")


def fitted_backbone(n_outputs=3, n=50):
    torch.manual_seed(0)
    module = FTTransformer(4, [], n_outputs, width=16, n_heads=2)
    x = np.random.default_rng(0).normal(size=(n, 4))
    inputs = encode_table(x)
    backbone = Backbone(module, blocks="blocks").probe(inputs.batch([0, 1]))
    return backbone, inputs


def test_stream_keeps_the_order_and_changes_no_flag():
    backbone, inputs = fitted_backbone(n=150)
    backbone.module.train()
    values = stream(backbone, inputs, lambda batch: batch["x_num"], None)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, inputs.batch(range(150))["x_num"])
    assert backbone.module.training
    assert all(p.requires_grad for p in backbone.module.parameters())


class Fitted(BackboneClassifier):
    """A classifier that is fitted from the start."""

    def __init__(self, backbone, classes):
        self.backbone, self.classes = backbone, classes
        self.backbone_, self.module_ = backbone, backbone.module
        self.classes_, self._n_tokens = np.asarray(classes), 5

    def fit(self, X, y):
        return self

    def encode(self, X):
        return encode_table(X)


@pytest.mark.parametrize("classes", [["no", "yes"], [-5, 0, 7]])
def test_predictions_agree_with_each_other(classes):
    backbone, inputs = fitted_backbone(len(classes))
    X = inputs.batch(range(50))["x_num"].numpy()
    model = Fitted(backbone, classes)
    logits = backbone.module.eval()(torch.from_numpy(X)).double().detach().numpy()
    scores, proba = model.decision_function(X), model.predict_proba(X)
    np.testing.assert_allclose(proba, softmax(logits, axis=1), rtol=1e-5)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), proba, rtol=1e-12)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=0, atol=5e-16)
    assert proba.dtype == scores.dtype == np.float64
    if len(classes) == 2:
        np.testing.assert_allclose(expit(scores), proba[:, 1], rtol=1e-12)
    else:
        np.testing.assert_allclose(softmax(scores, axis=1), proba, rtol=1e-12)
    assert (model.predict(X) == np.array(classes)[proba.argmax(1)]).all()
    assert model.n_outputs == len(classes)


def test_small_probabilities_have_a_finite_logarithm():
    backbone, inputs = fitted_backbone(2)
    with torch.no_grad():
        backbone.module.head.bias.copy_(torch.tensor([2000.0, 0.0]))
    model = Fitted(backbone, [0, 1])
    X = inputs.batch(range(3))["x_num"].numpy()
    assert (model.predict_proba(X)[:, 1] == 0).all()
    np.testing.assert_allclose(model.predict_log_proba(X)[:, 1], -2000, atol=10)


def test_weights_act_as_repeated_rows_in_the_loss():
    backbone, inputs = fitted_backbone(2, n=6)
    target = np.array([0, 1, 0, 1, 0, 1])

    def losses(rows, weight, held):
        history = train_classifier(
            backbone.module,
            lambda batch: backbone.module(**batch),
            inputs.take(rows),
            target[rows],
            weight / weight.mean(),
            held,
            batch_size=100,
            device="cpu",
            max_epochs=1,
            lr=1e-12,
            seed=0,
        )
        return history[0]

    for block in backbone.blocks:
        block.dropout = 0.0
    weighted = losses(np.arange(6), np.array([2.0, 1, 1, 3, 1, 1]), np.array([], dtype=int))
    repeated = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5])
    plain = losses(repeated, np.ones(9), np.array([], dtype=int))
    assert weighted["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)
    held = losses(np.arange(6), np.array([2.0, 1, 1, 3, 1, 1]), np.array([0, 3]))
    logits = backbone.module(**inputs.batch([0, 0, 3, 3, 3])).log_softmax(1)
    expected = -logits[torch.arange(5), [0, 0, 1, 1, 1]].mean().item()
    assert held["valid_loss"] == pytest.approx(expected, rel=1e-5)
