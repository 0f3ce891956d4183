"""Gaussian-process readout with random features and a Laplace posterior."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import Interval

from sklearn_diffuq.baselines._base import COMMON, TRAINING, BaselineClassifier, count_parameters
from sklearn_diffuq.baselines._last_layer import features_of, training_features

_PRIOR_VARIANCES = (1.0, 10.0, 100.0, 1000.0)
_MEDIAN_ROWS = 1000  # enough to know the median distance


class SNGPClassifier(BaselineClassifier):
    """Gaussian-process readout of SNGP on the features of a trained transformer.

    The last linear layer is replaced by a Gaussian process with a Gaussian kernel, in random
    Fourier features, on the standardised features that the layer reads. The posterior of its
    weights is a Laplace approximation, and the mean-field formula turns logits into probabilities,
    which grow uniform away from the training rows. The wrapped model itself is not trained, so the
    spectral normalisation of the paper has no part in it.

    Parameters
    ----------
    estimator : estimator, torch.nn.Module or str, default=None
        The wrapped model, as in :class:`~sklearn_diffuq.DiffusionCalibratedClassifier`.
    preprocessor : callable or str, default=None
        Tokenizer or image transform; with a torch model only.
    n_components : int, default=512
        Number of random features.
    length_scale : float, default=None
        Length scale of the kernel; None takes the median distance between training rows.
    validation_fraction : float, default=0.2
        Share of the rows held out, per class, to choose the prior variance, if `fit` is not given
        `X_calibration`.
    device : str, default="auto"
        Device of a wrapped model that is not yet fitted; "auto" is CUDA when there is one.
    random_state : int, RandomState instance or None, default=None
        Seed of the wrapped model, split and random features.
    verbose : int, default=0
        Not used: the training is one convex problem.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.
    wrapped_ : estimator
        The fitted wrapped classifier.
    length_scale_ : float
        Length scale of the kernel, in standardised features.
    prior_variance_ : float
        Prior variance of a logit: of 1, 10, 100 and 1000 the one with the lowest log loss on
        held-out rows.
    n_parameters_ : int
        Number of parameters that a prediction uses, with the covariance of the posterior.
    n_passes_ : int
        Cost of a prediction, in forward passes of the wrapped model.

    Warns
    -----
    ReadoutWarning
        If the model does not end in one linear layer: pooled features are used instead.

    See Also
    --------
    LaplaceClassifier : The same posterior of the linear layer itself.

    References
    ----------
    .. [1] J. Liu et al., "Simple and Principled Uncertainty Estimation with Deterministic Deep
       Learning via Distance Awareness", NeurIPS 2020, eqs. 7-9 and algorithm 1,
       :arxiv:`2006.10108`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_diffuq import FTTransformerClassifier
    >>> from sklearn_diffuq.baselines import SNGPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = FTTransformerClassifier(n_blocks=2, width=8, max_epochs=2, device="cpu")
    >>> clf = SNGPClassifier(model, n_components=32, random_state=0).fit(X, y)
    >>> clf.predict_proba(X).shape
    (150, 3)
    """

    _parameter_constraints: ClassVar[dict] = {
        **COMMON,
        "validation_fraction": TRAINING["validation_fraction"],
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "length_scale": [Interval(Real, 0, None, closed="neither"), None],
    }

    def __init__(
        self,
        estimator=None,
        *,
        preprocessor=None,
        n_components=512,
        length_scale=None,
        validation_fraction=0.2,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.preprocessor = preprocessor
        self.n_components = n_components
        self.length_scale = length_scale
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _fit(self, training, held_out, seed):
        rng = np.random.default_rng(seed)
        values = training_features(self, training)
        weight = training.weight.numpy()
        scaler = StandardScaler().fit(values, sample_weight=weight)
        self.length_scale_ = self.length_scale or median_distance(scaler.transform(values), rng)
        fourier = FourierFeatures.draw(scaler, self.length_scale_, self.n_components, rng)
        phi, phi_held = (fourier(v) for v in (values, features_of(self, held_out.inputs)))

        def log_loss(process):
            log_proba = log_softmax(process.logits(torch.from_numpy(phi_held)).numpy(), axis=1)
            picked = log_proba[np.arange(len(held_out)), held_out.y.numpy()]
            return -np.average(picked, weights=held_out.weight.numpy())

        n_classes = len(self.classes_)
        tried = [
            GaussianProcess.fit(phi, training.y.numpy(), weight, n_classes, variance)
            for variance in _PRIOR_VARIANCES
        ]
        self._fourier, self._process = fourier, min(tried, key=log_loss)
        self.prior_variance_ = self._process.prior_variance
        self.n_parameters_ = count_parameters(
            self.wrapped_.backbone_, self._process.mean, self._process.covariance
        )
        self.n_passes_ = 1

    def _proba(self, X):
        def head(features):
            return self._process.logits(torch.from_numpy(self._fourier(features.numpy())))

        return softmax(features_of(self, self.wrapped_.encode(X), head), axis=1)


def median_distance(values, rng):
    """Return the median distance between different rows, or 1 where it is zero."""
    some = rng.permutation(len(values))[:_MEDIAN_ROWS]
    distances = torch.pdist(torch.from_numpy(values[some]))
    return float(distances.median()) or 1.0


@dataclass(frozen=True)
class FourierFeatures:
    """Random features of a Gaussian kernel, ``sqrt(2 / D) cos(x W / length_scale + b)``.

    Attributes
    ----------
    scaler : StandardScaler
        Applied first.
    frequencies : ndarray of shape (d, D)
    phases : ndarray of shape (D,)
    """

    scaler: StandardScaler
    frequencies: np.ndarray
    phases: np.ndarray

    @classmethod
    def draw(cls, scaler, length_scale, n_components, rng):
        """Draw `n_components` features."""
        frequencies = rng.normal(size=(len(scaler.scale_), n_components)) / length_scale
        return cls(scaler, frequencies, rng.uniform(0, 2 * np.pi, n_components))

    def __call__(self, values):
        """Map values (n, d) to features (n, D), whose products are the kernel on average."""
        angles = self.scaler.transform(values) @ self.frequencies + self.phases
        return math.sqrt(2 / len(self.phases)) * np.cos(angles)


@dataclass(frozen=True)
class GaussianProcess:
    """Laplace posterior of the logits ``sqrt(prior_variance) phi beta``, with beta ~ N(0, I).

    Attributes
    ----------
    mean : Tensor of shape (D, n_classes)
        Most probable weights.
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
        """Return the mean-field logits, mean / sqrt(1 + pi / 8 variance)."""
        mean, variance = self.moments(phi)
        return mean / torch.sqrt(1 + math.pi / 8 * variance)


def fit_map(phi, target, weight, n_classes):
    """Return the weights (D, n_classes) of the largest posterior under a standard normal prior."""
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
