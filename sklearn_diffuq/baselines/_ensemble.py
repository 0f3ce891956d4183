"""Deep ensemble: the average of several training runs."""

from numbers import Integral
from typing import ClassVar

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import Interval

from sklearn_diffuq._training.classification import cross_entropy
from sklearn_diffuq._training.seeds import own_torch_seed
from sklearn_diffuq._wrapped.wrap import fit_wrapped
from sklearn_diffuq.baselines._backbone_modules import count_parameters
from sklearn_diffuq.baselines._base import COMMON, TRAINING, SamplingClassifier
from sklearn_diffuq.baselines._fine_tuning import fine_tune, trainable_copy
from sklearn_diffuq.baselines._last_layer import LastLayer, with_last_layer


class DeepEnsembleClassifier(SamplingClassifier):
    """Average of several trained transformers.

    An unfitted estimator is trained `n_members` times with different seeds. A pre-trained model is
    copied `n_members` times; each copy gets a new random last layer and is fine-tuned with its own
    order of the rows. The epoch with the lowest log loss on held-out rows is kept.

    Parameters
    ----------
    estimator : estimator, torch.nn.Module or str, default=None
        The wrapped model, as in :class:`~sklearn_diffuq.DiffusionCalibratedClassifier`.
    preprocessor : callable or str, default=None
        Tokenizer or image transform; with a torch model only.
    n_members : int, default=5
        Number of models.
    validation_fraction : float, default=0.2
        Fraction of the rows of each class to hold out if `fit` gets no `X_calibration`.
    max_epochs : int, default=3
        Epochs of fine-tuning, for pre-trained models.
    batch_size : int, default=32
        Rows in a batch of fine-tuning.
    lr : float, default=5e-5
        Peak learning rate of fine-tuning.
    device : str, default="auto"
        Device of a wrapped model that is not fitted yet; "auto" uses CUDA if available.
    random_state : int, RandomState instance or None, default=None
        Seed from which the seeds of the members are drawn.
    verbose : int, default=0
        If positive, print one line per epoch of fine-tuning.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.
    wrapped_ : estimator
        The fitted wrapped classifier. If `fit` trained it, it is the first member.
    n_parameters_ : int
        Number of parameters that a prediction uses.
    n_passes_ : int
        Cost of a prediction, in forward passes of the wrapped model.

    See Also
    --------
    MCDropoutClassifier : Samples from one training run.

    Notes
    -----
    Members that start from one pre-trained model are less diverse than members trained from
    scratch.

    References
    ----------
    .. [1] B. Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using
       Deep Ensembles", NeurIPS 2017, section 2.4, :arxiv:`1612.01474`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_diffuq import FTTransformerClassifier
    >>> from sklearn_diffuq.baselines import DeepEnsembleClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = FTTransformerClassifier(n_blocks=2, width=8, max_epochs=2, device="cpu")
    >>> clf = DeepEnsembleClassifier(model, n_members=2, random_state=0).fit(X, y)
    >>> clf.sample_proba(X).shape
    (2, 150, 3)
    """

    _parameter_constraints: ClassVar[dict] = {
        **COMMON,
        **TRAINING,
        "n_members": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        estimator=None,
        *,
        preprocessor=None,
        n_members=5,
        validation_fraction=0.2,
        max_epochs=3,
        batch_size=32,
        lr=5e-5,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.preprocessor = preprocessor
        self.n_members = n_members
        self.validation_fraction = validation_fraction
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _wrap(self, rows, seed):
        first, training = fit_wrapped(self, *rows, seed)
        self._members = []  # pairs of encoder and backbone
        if not isinstance(self.estimator, FrozenEstimator) and first.history_:
            members = [first]
            for state in self._seeds(seed)[1:]:
                members.append(clone(first).set_params(random_state=int(state)).fit(*rows))
            self._members = [(member, member.backbone_) for member in members]
        return first, training

    def _seeds(self, seed):
        # 31 bits: scikit-learn takes no larger seeds
        return np.random.SeedSequence(seed).generate_state(self.n_members) >> 1

    def _fit(self, training, held_out, seed):
        if not self._members:
            wrapped, last_layer = with_last_layer(self.wrapped_, training)
            for state in self._seeds(seed):
                member = self._fine_tuned(last_layer, training, held_out, int(state))
                self._members.append((wrapped, member))
        self.n_parameters_ = count_parameters([backbone for _, backbone in self._members])
        self.n_passes_ = self.n_members

    def _fine_tuned(self, last_layer, training, held_out, seed):
        """Return a fine-tuned copy of a backbone whose last layer starts from random weights."""
        backbone = trainable_copy(last_layer.backbone)
        with own_torch_seed(seed, backbone.device):
            LastLayer(backbone, last_layer.name).layer.reset_parameters()
        fine_tune(self, backbone, cross_entropy(backbone.logits), training, held_out, seed)
        return backbone

    def _sample_logits(self, X):
        logits = [
            backbone.map_rows(backbone.logits, wrapped.encode(X))
            for wrapped, backbone in self._members
        ]
        return np.stack(logits, 1)
