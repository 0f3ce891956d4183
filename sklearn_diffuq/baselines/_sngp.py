"""Spectral-normalised neural Gaussian process (SNGP): its readout, without the normalisation."""

from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import Interval

from sklearn_diffuq.baselines._backbone_modules import count_parameters
from sklearn_diffuq.baselines._base import COMMON, VALIDATION_FRACTION, BaselineClassifier
from sklearn_diffuq.baselines._gaussian_process import (
    FourierFeatures,
    GaussianProcess,
    median_distance,
)
from sklearn_diffuq.baselines._last_layer import LastLayer, with_last_layer

_PRIOR_VARIANCES = (1.0, 10.0, 100.0, 1000.0)


class SNGPClassifier(BaselineClassifier):
    """Gaussian process readout of SNGP on the features of a trained transformer.

    A Gaussian process replaces the last linear layer. Its kernel is Gaussian, approximated by
    random Fourier features of the standardised inputs of that layer; its posterior is a Laplace
    approximation. The mean-field formula turns logits into probabilities, which become uniform far
    from the training data. The wrapped model is not trained, so the spectral normalisation of the
    paper does not apply.

    Parameters
    ----------
    estimator : estimator, torch.nn.Module or str, default=None
        The wrapped model, as in :class:`~sklearn_diffuq.DiffusionCalibratedClassifier`.
    preprocessor : callable or str, default=None
        Tokenizer or image transform; with a torch model only.
    n_components : int, default=512
        Number of random features.
    length_scale : float, default=None
        Length scale of the kernel; None uses the median distance between training rows.
    validation_fraction : float, default=0.2
        Fraction of the rows of each class to hold out if `fit` gets no `X_calibration`. The prior
        variance is chosen on held-out rows.
    device : str, default="auto"
        Device of a wrapped model that is not fitted yet; "auto" uses CUDA if available.
    random_state : int, RandomState instance or None, default=None
        Seed of the wrapped model, split and random features.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.
    wrapped_ : estimator
        The fitted wrapped classifier.
    length_scale_ : float
        Length scale of the kernel, in standardised features.
    prior_variance_ : float
        Prior variance of a logit: 1, 10, 100 or 1000, whichever has the lowest log loss on held-out
        rows.
    n_parameters_ : int
        Number of parameters that a prediction uses, with the covariance of the posterior.
    n_passes_ : int
        Cost of a prediction, in forward passes of the wrapped model.

    Warns
    -----
    ReadoutWarning
        If the model does not end in one linear layer; pooled features are used then.

    See Also
    --------
    LaplaceClassifier : A Laplace approximation of the linear layer itself.

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
        **VALIDATION_FRACTION,
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
    ):
        self.estimator = estimator
        self.preprocessor = preprocessor
        self.n_components = n_components
        self.length_scale = length_scale
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state

    def _fit(self, training, held_out, seed):
        self.wrapped_, last_layer = with_last_layer(self.wrapped_, training)
        self._layer = last_layer.name
        rng = np.random.default_rng(seed)
        values = last_layer.all_features(training.inputs)
        weight = training.weight.numpy()
        scaler = StandardScaler().fit(values, sample_weight=weight)
        self.length_scale_ = self.length_scale or median_distance(scaler.transform(values), rng)
        fourier = FourierFeatures.draw(scaler, self.length_scale_, self.n_components, rng)
        phi, phi_held = fourier(values), fourier(last_layer.all_features(held_out.inputs))

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
            [last_layer.backbone], self._process.mean, self._process.covariance
        )
        self.n_passes_ = 1

    def _proba(self, X):
        def head(features):
            return self._process.logits(torch.from_numpy(self._fourier(features.numpy())))

        last_layer = LastLayer(self.wrapped_.backbone_, self._layer)
        return softmax(last_layer.predict(head, self.wrapped_.encode(X)), axis=1)
