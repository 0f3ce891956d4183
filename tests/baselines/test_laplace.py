import sys

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from tiny_baselines import make

from sklearn_diffuq.baselines._kronecker_posterior import with_constant
from sklearn_diffuq.baselines._laplace import fit_posterior, import_laplace


@pytest.fixture
def layer():
    """Return features, targets, and weights of a layer of three classes."""
    pytest.importorskip("laplace")
    rng = np.random.default_rng(0)
    features, target = rng.normal(size=(300, 4)), torch.from_numpy(rng.integers(0, 3, 300))
    return features, target, torch.from_numpy(rng.normal(size=(3, 5)))


def closed_form(features, weight, prior_precision):
    """Return the variance of the logits under the full Gauss-Newton posterior."""
    phi = with_constant(torch.from_numpy(features))
    p = torch.softmax(phi @ weight.T, 1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    hessian = torch.einsum("nij,nk,nl->ikjl", curvature, phi, phi).reshape(15, 15)
    covariance = torch.linalg.inv(hessian + prior_precision * torch.eye(15, dtype=torch.float64))
    jacobian = torch.einsum("ij,nk->nijk", torch.eye(3, dtype=torch.float64), phi)
    jacobian = jacobian.reshape(-1, 3, 15)
    return (jacobian @ covariance @ jacobian.mT).diagonal(dim1=1, dim2=2)


def test_the_posterior_is_exact_where_the_curvature_is_a_product(layer):
    """With equal probabilities, the Gauss-Newton matrix is a Kronecker product."""
    features, target, weight = layer
    posterior = fit_posterior(features, target, torch.zeros_like(weight))
    _, variance = posterior.moments(torch.from_numpy(features[:7]))
    expected = closed_form(features, 0 * weight, posterior.prior_precision)[:7]
    torch.testing.assert_close(variance, expected, rtol=1e-4, atol=0)


def test_probabilities_are_those_of_laplace_torch(layer):
    features, target, weight = layer
    posterior = fit_posterior(features, target, weight)
    laplace = import_laplace()
    linear = torch.nn.Linear(5, 3, bias=False)
    linear.weight.data = weight.float()
    peer = laplace.Laplace(
        torch.nn.Sequential(linear), "classification", "last_layer", "kron", last_layer_name="0"
    )
    inputs = with_constant(torch.from_numpy(features)).float()
    dataset = torch.utils.data.TensorDataset(inputs, target)
    peer.fit(torch.utils.data.DataLoader(dataset, batch_size=300))
    peer.prior_precision = posterior.prior_precision
    expected = peer(inputs[:9], pred_type="glm", link_approx="probit").double()
    found = torch.softmax(posterior.logits(torch.from_numpy(features[:9])), 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_approximation_is_near_the_full_posterior(layer):
    features, target, weight = layer
    posterior = fit_posterior(features, target, weight)
    _, variance = posterior.moments(torch.from_numpy(features))
    expected = closed_form(features, weight, posterior.prior_precision)
    assert 0.7 < (variance.sum() / expected.sum()).item() < 1.4


def test_less_confident_than_the_wrapped_model_and_no_less_accurate(images, fitted):
    pytest.importorskip("laplace")
    clf = fitted("LaplaceClassifier")
    proba, plain = (c.predict_proba(images.X_test) for c in (clf, images.trained))
    assert proba.max(1).mean() < plain.max(1).mean()
    assert (proba.argmax(1) == plain.argmax(1)).mean() > 0.95
    assert clf.prior_precision_ > 0


def test_weights_are_refused(images):
    clf = make("LaplaceClassifier", FrozenEstimator(images.trained))
    with pytest.raises(ValueError, match="does not support sample weights"):
        clf.fit(images.X, images.y, sample_weight=np.arange(1, 201))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "laplace", None)
    with pytest.raises(ImportError, match=r'pip install "sklearn-diffuq\[bench\]"'):
        import_laplace()
