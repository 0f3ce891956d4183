"""Variational head: a Gaussian latent between frozen features and linear logits."""

from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import Interval
from torch.nn import functional as F

from sklearn_diffuq._training.loop import train_module
from sklearn_diffuq._training.seeds import own_torch_seed
from sklearn_diffuq.baselines._backbone_modules import count_parameters
from sklearn_diffuq.baselines._base import COMMON, TRAINING, SamplingClassifier, loop_options
from sklearn_diffuq.baselines._last_layer import LastLayer, with_last_layer


class VariationalLastLayerClassifier(SamplingClassifier):
    """Variational two-stage training (V-TST): a new head with a Gaussian latent.

    The wrapped model is the first stage and is not changed. The second stage maps the inputs of its
    last linear layer to a Gaussian latent, and samples of the latent to logits. Both maps are
    linear and trained from scratch. The epoch with the lowest log loss on held-out rows is kept.

    Parameters
    ----------
    estimator : estimator, torch.nn.Module or str, default=None
        The wrapped model, as in :class:`~sklearn_diffuq.DiffusionCalibratedClassifier`.
    preprocessor : callable or str, default=None
        Tokenizer or image transform; with a torch model only.
    n_samples : int, default=10
        Number of samples of the latent.
    n_latent : int, default=32
        Dimension of the latent.
    kl_weight : float, default=0.01
        Weight of the KL divergence of the latent from its prior.
    validation_fraction : float, default=0.2
        Fraction of the rows of each class to hold out if `fit` gets no `X_calibration`.
    max_epochs : int, default=30
        Epochs of training.
    batch_size : int, default=128
        Rows in a training batch.
    lr : float, default=1e-2
        Peak learning rate.
    device : str, default="auto"
        Device of a wrapped model that is not fitted yet; "auto" uses CUDA if available.
    random_state : int, RandomState instance or None, default=None
        Seed of the wrapped model, split, training and samples.
    verbose : int, default=0
        If positive, print one line per epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.
    wrapped_ : estimator
        The fitted wrapped classifier.
    history_ : list of dict
        One entry per epoch.
    n_parameters_ : int
        Number of parameters that a prediction uses.
    n_passes_ : int
        Cost of a prediction, in forward passes of the wrapped model.

    Warns
    -----
    ReadoutWarning
        If the model does not end in one linear layer; pooled features are used then.

    See Also
    --------
    LaplaceClassifier : A posterior of the wrapped model's own last layer.

    Notes
    -----
    With ``kl_weight=1`` the loss is the negative evidence lower bound of the paper. The latent then
    often collapses to the prior: what it tells about the label is worth less than its divergence.
    Hence the smaller default.

    References
    ----------
    .. [1] M. Jordahn and P. Olmos, "Decoupling Feature Extraction and Classification Layers for
       Calibrated Neural Networks", ICML 2024, section 3.2, :arxiv:`2405.01196`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_diffuq import FTTransformerClassifier
    >>> from sklearn_diffuq.baselines import VariationalLastLayerClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = FTTransformerClassifier(n_blocks=2, width=8, max_epochs=2, device="cpu")
    >>> clf = VariationalLastLayerClassifier(model, max_epochs=2, random_state=0).fit(X, y)
    >>> clf.sample_proba(X).shape
    (10, 150, 3)
    """

    _parameter_constraints: ClassVar[dict] = {
        **COMMON,
        **TRAINING,
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "n_latent": [Interval(Integral, 1, None, closed="left")],
        "kl_weight": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        estimator=None,
        *,
        preprocessor=None,
        n_samples=10,
        n_latent=32,
        kl_weight=0.01,
        validation_fraction=0.2,
        max_epochs=30,
        batch_size=128,
        lr=1e-2,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.preprocessor = preprocessor
        self.n_samples = n_samples
        self.n_latent = n_latent
        self.kl_weight = kl_weight
        self.validation_fraction = validation_fraction
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _fit(self, training, held_out, seed):
        self.wrapped_, last_layer = with_last_layer(self.wrapped_, training)
        self._layer = last_layer.name
        values = last_layer.all_features(training.inputs)
        self._scaler = StandardScaler().fit(values, sample_weight=training.weight.numpy())
        generator = torch.Generator().manual_seed(seed)
        self._noise = torch.randn(self.n_samples, self.n_latent, generator=generator)
        with own_torch_seed(seed, "cpu"):
            self._head = VariationalHead(values.shape[1], self.n_latent, len(self.classes_))
        held = self._scaled(last_layer.all_features(held_out.inputs)).float()
        self.history_ = self._train(self._scaled(values).float(), training, held, held_out, seed)
        self._head.double()
        self.n_parameters_ = count_parameters([last_layer.backbone], self._head)
        self.n_passes_ = 1

    def _scaled(self, values):
        return torch.from_numpy(self._scaler.transform(np.asarray(values)))

    def _train(self, features, training, held_features, held_out, seed):
        weight = (training.weight / training.weight.mean()).float()

        def batch_loss(rows, epoch, generator):
            losses = self._head.losses(
                features[rows], training.y[rows], self.kl_weight, generator=generator
            )
            return {"loss": (losses * weight[rows]).mean()}

        def validate(epoch):
            proba = torch.softmax(self._head(held_features, self._noise), 2).mean(1)
            losses = F.nll_loss(proba.log(), held_out.y, reduction="none")
            return (losses * held_out.weight).sum() / held_out.weight.sum()

        def epoch_batches(epoch, rng):
            n_batches = -(-len(training) // self.batch_size)
            return np.array_split(rng.permutation(len(training)), n_batches)

        return train_module(
            self._head, batch_loss, epoch_batches, loop_options(self, seed), validate
        )

    def _sample_logits(self, X):
        def head(features):
            return self._head(self._scaled(features), self._noise.double())

        last_layer = LastLayer(self.wrapped_.backbone_, self._layer)
        return last_layer.predict(head, self.wrapped_.encode(X))


class VariationalHead(torch.nn.Module):
    """Linear maps from features to a Gaussian latent, and from its samples to logits.

    Shape:
        - Features: (n, n_features). Noise: (K, n_latent), the same for every row.
        - Output: (n, K, n_classes).
    """

    def __init__(self, n_features, n_latent, n_classes):
        super().__init__()
        self.mean = torch.nn.Linear(n_features, n_latent)
        self.log_variance = torch.nn.Linear(n_features, n_latent)
        self.readout = torch.nn.Linear(n_latent, n_classes)
        torch.nn.init.zeros_(self.log_variance.weight)
        torch.nn.init.constant_(self.log_variance.bias, -2.0)

    def forward(self, features, noise):
        mean, deviation = self.mean(features), torch.exp(0.5 * self.log_variance(features))
        return self.readout(mean[:, None] + deviation[:, None] * noise)

    def losses(self, features, target, kl_weight, *, generator=None):
        """Return the negative evidence lower bound of each row, with one sample of the latent."""
        mean, log_variance = self.mean(features), self.log_variance(features)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        logits = self.readout(mean + torch.exp(0.5 * log_variance) * noise)
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
        return F.cross_entropy(logits, target, reduction="none") + kl_weight * divergence
