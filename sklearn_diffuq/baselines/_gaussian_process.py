"""Gaussian process classification with random Fourier features and a Laplace approximation."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.preprocessing import StandardScaler

from sklearn_diffuq.baselines._probit import probit_logits

_MEDIAN_ROWS = 1000  # enough for a good estimate of the median distance


def median_distance(values, rng):
    """Return the median distance between different rows, or 1 if it is zero."""
    some = rng.permutation(len(values))[:_MEDIAN_ROWS]
    distances = torch.pdist(torch.from_numpy(values[some]))
    return float(distances.median()) or 1.0


@dataclass(frozen=True)
class FourierFeatures:
    """Random features of a Gaussian kernel, ``sqrt(2 / D) cos(x W / length_scale + b)``.

    Attributes
    ----------
    scaler : StandardScaler
        Applied to the values first.
    frequencies : ndarray of shape (d, D)
    phases : ndarray of shape (D,)
    """

    scaler: StandardScaler
    frequencies: np.ndarray
    phases: np.ndarray

    @classmethod
    def draw(cls, scaler, length_scale, n_components, rng):
        """Draw the frequencies and phases of `n_components` features."""
        frequencies = rng.normal(size=(len(scaler.scale_), n_components)) / length_scale
        return cls(scaler, frequencies, rng.uniform(0, 2 * np.pi, n_components))

    def __call__(self, values):
        """Map values (n, d) to features (n, D); their inner products approximate the kernel."""
        angles = self.scaler.transform(values) @ self.frequencies + self.phases
        return math.sqrt(2 / len(self.phases)) * np.cos(angles)


@dataclass(frozen=True)
class GaussianProcess:
    """Laplace posterior of the logits ``sqrt(prior_variance) phi beta``, with beta ~ N(0, I).

    Attributes
    ----------
    mean : Tensor of shape (D, n_classes)
        Posterior mode of beta.
    covariance : Tensor of shape (n_classes, D, D)
        Inverse of ``I + prior_variance sum_i w_i p_ik (1 - p_ik) phi_i phi_i^T`` for class k.
    prior_variance : float
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    prior_variance: float

    @classmethod
    def fit(cls, phi, target, weight, n_classes, prior_variance):
        """Fit the posterior to features (n, D), class indices (n,) and weights (n,)."""
        phi = math.sqrt(prior_variance) * phi
        mean = fit_map(phi, target, weight, n_classes)
        p = softmax(phi @ mean, axis=1)
        curvature = torch.from_numpy(weight[:, None] * p * (1 - p))
        phi, identity = torch.from_numpy(phi), torch.eye(phi.shape[1], dtype=torch.float64)
        precisions = [identity + phi.T @ (column[:, None] * phi) for column in curvature.T]
        covariance = torch.stack(
            [torch.cholesky_inverse(torch.linalg.cholesky(precision)) for precision in precisions]
        )
        return cls(torch.from_numpy(mean), covariance, prior_variance)

    def moments(self, phi):
        """Return mean and variance of the logits of features (n, D), both (n, n_classes)."""
        phi = math.sqrt(self.prior_variance) * phi
        variance = ((phi @ self.covariance) * phi).sum(2).T
        return phi @ self.mean, variance

    def logits(self, phi):
        """Return the logits of the mean-field approximation of the mean probabilities."""
        return probit_logits(*self.moments(phi))


def fit_map(phi, target, weight, n_classes):
    """Return the posterior mode of weights (D, n_classes) under a standard normal prior."""
    shape = (phi.shape[1], n_classes)
    onehot = np.eye(n_classes)[target]

    def negative_log_posterior(flat):
        beta = flat.reshape(shape)
        log_p = log_softmax(phi @ beta, axis=1)
        gradient = phi.T @ (weight[:, None] * (np.exp(log_p) - onehot)) + beta
        value = 0.5 * np.square(beta).sum() - (weight[:, None] * onehot * log_p).sum()
        return value, gradient.ravel()

    options = {"maxiter": 1000, "ftol": 1e-10, "gtol": 1e-6}
    found = minimize(
        negative_log_posterior,
        np.zeros(shape).ravel(),
        jac=True,
        method="L-BFGS-B",
        options=options,
    )
    return found.x.reshape(shape)
