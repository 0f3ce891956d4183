import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.ft_transformer import FTTransformer
from sklearn_diffuq._inputs.table_encoder import encode_table
from sklearn_diffuq._wrapped.backbone_classifier import BackboneClassifier, resolve_device


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


class Fitted(BackboneClassifier):
    """A classifier that is fitted from the start."""

    def __init__(self, backbone, classes):
        self.backbone, self.classes = backbone, classes
        self.backbone_, self.module_ = backbone, backbone.module
        self.classes_ = np.asarray(classes)

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


def test_small_probabilities_have_a_finite_logarithm():
    backbone, inputs = fitted_backbone(2)
    with torch.no_grad():
        backbone.module.head.bias.copy_(torch.tensor([2000.0, 0.0]))
    model = Fitted(backbone, [0, 1])
    X = inputs.batch(range(3))["x_num"].numpy()
    assert (model.predict_proba(X)[:, 1] == 0).all()
    np.testing.assert_allclose(model.predict_log_proba(X)[:, 1], -2000, atol=10)
