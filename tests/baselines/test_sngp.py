import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sklearn_diffuq.baselines._gaussian_process import FourierFeatures, GaussianProcess, fit_map


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 5)), rng.integers(0, 3, 60), rng.uniform(0.5, 2, 60)


def test_products_of_the_features_are_the_kernel(rows):
    values = rows[0]
    scaler = StandardScaler().fit(values)
    features = FourierFeatures.draw(scaler, 1.7, 100_000, np.random.default_rng(1))(values)
    expected = RBF(1.7)(scaler.transform(values))
    np.testing.assert_allclose(features @ features.T, expected, atol=0.02)


def test_the_mean_is_the_ridge_logistic_regression(rows):
    """Standard normal weights are scikit-learn's penalty with C = 1."""
    phi, target, weight = rows
    expected = LogisticRegression(C=1, fit_intercept=False, tol=1e-10, max_iter=1000)
    expected.fit(phi, target, sample_weight=weight)
    np.testing.assert_allclose(fit_map(phi, target, weight, 3), expected.coef_.T, atol=1e-4)


def test_the_posterior_is_that_of_the_paper(rows):
    """Liu et al. 2020, eq. 9, row by row."""
    phi, target, weight = rows
    process = GaussianProcess.fit(phi, target, weight, 3, prior_variance=4.0)
    scaled, x = 2 * phi, np.array([[0.3, -1.0, 0.5, 2.0, 0.0]])
    p = softmax(scaled @ process.mean.numpy(), axis=1)
    mean, variance = (part.numpy() for part in process.moments(torch.from_numpy(x)))
    for k in range(3):
        precision = np.eye(5)
        for i in range(60):
            precision += weight[i] * p[i, k] * (1 - p[i, k]) * np.outer(scaled[i], scaled[i])
        expected = 2 * x[0] @ np.linalg.solve(precision, 2 * x[0])
        assert variance[0, k] == pytest.approx(expected)
    np.testing.assert_allclose(mean, 2 * x @ process.mean.numpy())
    found = process.logits(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, mean / np.sqrt(1 + np.pi / 8 * variance))


def test_a_class_without_rows_is_allowed(rows):
    phi, target, weight = rows
    process = GaussianProcess.fit(phi, np.minimum(target, 1), weight, 3, prior_variance=1.0)
    assert torch.isfinite(process.logits(torch.from_numpy(phi))).all()


def test_far_from_the_data_the_logits_are_those_of_the_prior():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 2))
    target = (values[:, 0] > 0).astype(int)
    scaler = StandardScaler().fit(values)
    fourier = FourierFeatures.draw(scaler, 1.0, 400, rng)
    process = GaussianProcess.fit(fourier(values), target, np.ones(200), 2, prior_variance=10.0)
    _, near = process.moments(torch.from_numpy(fourier(values)))
    _, far = process.moments(torch.from_numpy(fourier(values + 50)))
    assert near.mean() < 0.3 * far.mean()
    assert far.mean() == pytest.approx(10, rel=0.2)


def test_parts_are_chosen_from_the_data(images, fitted):
    clf = fitted("SNGPClassifier")
    assert clf.prior_variance_ in (1, 10, 100, 1000)
    assert clf.length_scale_ > 0
