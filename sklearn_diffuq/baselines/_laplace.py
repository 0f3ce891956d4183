"""Laplace approximation of the posterior of the last layer, by laplace-torch."""

import warnings
from typing import ClassVar

import torch
from scipy.special import softmax

from sklearn_diffuq.baselines._backbone_modules import count_parameters
from sklearn_diffuq.baselines._base import COMMON, BaselineClassifier
from sklearn_diffuq.baselines._kronecker_posterior import KroneckerPosterior, with_constant
from sklearn_diffuq.baselines._last_layer import LastLayer, with_last_layer


class LaplaceClassifier(BaselineClassifier):
    """Last-layer Laplace approximation around a trained transformer.

    The posterior of the last linear layer is a Gaussian around its trained weights. Its precision
    is the Kronecker-factored generalised Gauss-Newton matrix plus a prior precision, chosen by
    marginal likelihood. Probabilities come from the probit approximation of the linearised model.
    The wrapped model is not trained.

    Needs laplace-torch: ``pip install "sklearn-diffuq[bench]"``.

    Parameters
    ----------
    estimator : estimator, torch.nn.Module or str, default=None
        The wrapped model, as in :class:`~sklearn_diffuq.DiffusionCalibratedClassifier`.
    preprocessor : callable or str, default=None
        Tokenizer or image transform; with a torch model only.
    device : str, default="auto"
        Device of a wrapped model that is not fitted yet; "auto" uses CUDA if available.
    random_state : int, RandomState instance or None, default=None
        Seed of the wrapped model.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.
    wrapped_ : estimator
        The fitted wrapped classifier.
    prior_precision_ : float
        Precision of the prior of the weights.
    n_parameters_ : int
        Number of parameters that a prediction uses, with the factors of the posterior.
    n_passes_ : int
        Cost of a prediction, in forward passes of the wrapped model.

    Warns
    -----
    ReadoutWarning
        If the model does not end in one linear layer; a logistic regression on pooled features is
        used then.

    See Also
    --------
    SNGPClassifier : A Gaussian process on the same features.
    VariationalLastLayerClassifier : A variational head on the same features.

    Notes
    -----
    The bias is treated as the weight of a constant feature, so that it shares the Kronecker
    factors. The posterior is fitted in single precision and evaluated in double precision.

    References
    ----------
    .. [1] A. Kristiadi et al., "Being Bayesian, Even Just a Bit, Fixes Overconfidence in ReLU
       Networks", ICML 2020, eq. 4, :arxiv:`2002.10118`.
    .. [2] E. Daxberger et al., "Laplace Redux", NeurIPS 2021, :arxiv:`2106.14806`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_diffuq import FTTransformerClassifier
    >>> from sklearn_diffuq.baselines import LaplaceClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = FTTransformerClassifier(n_blocks=2, width=8, max_epochs=2, device="cpu")
    >>> clf = LaplaceClassifier(model, random_state=0).fit(X, y)  # doctest: +SKIP
    >>> clf.predict_proba(X).shape  # doctest: +SKIP
    (150, 3)
    """

    _needs_held_out: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict] = COMMON

    def __init__(self, estimator=None, *, preprocessor=None, device="auto", random_state=None):
        self.estimator = estimator
        self.preprocessor = preprocessor
        self.device = device
        self.random_state = random_state

    def _fit(self, training, held_out, seed):
        if training.weight.unique().numel() > 1:
            raise ValueError("laplace-torch does not support sample weights: fit without them.")
        self.wrapped_, last_layer = with_last_layer(self.wrapped_, training)
        weight, bias = (part.cpu() for part in last_layer.weights())
        self._layer = last_layer.name
        self._posterior = fit_posterior(
            last_layer.all_features(training.inputs),
            training.y,
            torch.cat([weight, bias[:, None]], 1),
        )
        self.prior_precision_ = self._posterior.prior_precision
        self.n_parameters_ = count_parameters([last_layer.backbone], *self._posterior.tensors)
        self.n_passes_ = 1

    def _proba(self, X):
        last_layer = LastLayer(self.wrapped_.backbone_, self._layer)
        logits = last_layer.predict(self._posterior.logits, self.wrapped_.encode(X))
        return softmax(logits, axis=1)


def fit_posterior(features, target, weight):
    """Fit the posterior of a linear layer with laplace-torch.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Inputs of the layer.
    target : Tensor of shape (n,)
        Class indices.
    weight : Tensor of shape (n_classes, d + 1)
        Trained weights; the last column is the bias.

    Returns
    -------
    posterior : KroneckerPosterior
        In float64.
    """
    laplace = import_laplace()
    layer = torch.nn.utils.skip_init(torch.nn.Linear, weight.shape[1], len(weight), bias=False)
    layer.weight.data = weight.float()
    data = torch.utils.data.TensorDataset(with_constant(torch.from_numpy(features)).float(), target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fitted = laplace.Laplace(
                torch.nn.Sequential(layer),
                "classification",
                subset_of_weights="last_layer",
                hessian_structure="kron",
                last_layer_name="0",
            )
            fitted.fit(torch.utils.data.DataLoader(data, batch_size=len(data)))
            fitted.optimize_prior_precision(method="marglik")
        except SystemExit as error:  # laplace-torch exits if it finds no eigenvectors
            raise RuntimeError("laplace-torch found no eigenvectors of the curvature.") from error
    factors = zip(fitted.H.eigenvalues[0], fitted.H.eigenvectors[0])  # output factor first
    return KroneckerPosterior(
        weight,
        *(part.detach().double() for factor in factors for part in factor),
        prior_precision=fitted.prior_precision.item(),
    )


def import_laplace():
    """Import laplace-torch, or explain how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses deprecated parts of torch
            import laplace
    except ImportError as error:
        raise ImportError(
            'LaplaceClassifier needs laplace-torch: pip install "sklearn-diffuq[bench]"'
        ) from error
    return laplace
