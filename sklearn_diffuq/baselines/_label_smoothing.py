"""Label smoothing: a copy of the wrapped model, fine-tuned on softened labels."""

from numbers import Real
from typing import ClassVar

from scipy.special import softmax
from sklearn.utils._param_validation import Interval
from torch.nn import functional as F

from sklearn_diffuq.baselines._backbone_modules import count_parameters
from sklearn_diffuq.baselines._base import COMMON, TRAINING, BaselineClassifier
from sklearn_diffuq.baselines._fine_tuning import fine_tune, trainable_copy


class LabelSmoothingClassifier(BaselineClassifier):
    """A copy of a trained transformer, fine-tuned with label smoothing.

    The target of a row of class y is ``(1 - smoothing) onehot(y) + smoothing / n_classes``. All
    parameters of the copy are trained. The epoch with the lowest smoothed loss on held-out rows is
    kept.

    Parameters
    ----------
    estimator : estimator, torch.nn.Module or str, default=None
        The wrapped model, as in :class:`~sklearn_diffuq.DiffusionCalibratedClassifier`.
    preprocessor : callable or str, default=None
        Tokenizer or image transform; with a torch model only.
    smoothing : float, default=0.1
        Probability mass that is spread evenly over all classes.
    validation_fraction : float, default=0.2
        Fraction of the rows of each class to hold out if `fit` gets no `X_calibration`.
    max_epochs : int, default=3
        Epochs of fine-tuning.
    batch_size : int, default=32
        Rows in a training batch.
    lr : float, default=5e-5
        Peak learning rate.
    device : str, default="auto"
        Device of a wrapped model that is not fitted yet; "auto" uses CUDA if available.
    random_state : int, RandomState instance or None, default=None
        Seed of the wrapped model, split and training.
    verbose : int, default=0
        If positive, print one line per epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.
    wrapped_ : estimator
        The fitted wrapped classifier. Predictions come from a fine-tuned copy.
    history_ : list of dict
        One entry per epoch.
    n_parameters_ : int
        Number of parameters that a prediction uses.
    n_passes_ : int
        Cost of a prediction, in forward passes of the wrapped model.

    See Also
    --------
    sklearn.calibration.CalibratedClassifierCV : Temperature scaling.

    References
    ----------
    .. [1] C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision",
       CVPR 2016, section 7, :arxiv:`1512.00567`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_diffuq import FTTransformerClassifier
    >>> from sklearn_diffuq.baselines import LabelSmoothingClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = FTTransformerClassifier(n_blocks=2, width=8, max_epochs=2, device="cpu")
    >>> clf = LabelSmoothingClassifier(model, max_epochs=2, random_state=0).fit(X, y)
    >>> clf.predict_proba(X).shape
    (150, 3)
    """

    _parameter_constraints: ClassVar[dict] = {
        **COMMON,
        **TRAINING,
        "smoothing": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        estimator=None,
        *,
        preprocessor=None,
        smoothing=0.1,
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
        self.smoothing = smoothing
        self.validation_fraction = validation_fraction
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _fit(self, training, held_out, seed):
        self._backbone = trainable_copy(self.wrapped_.backbone_)

        def losses(batch, y):
            logits = self._backbone.logits(batch).float()
            return F.cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing)

        self.history_ = fine_tune(self, self._backbone, losses, training, held_out, seed)
        self.n_parameters_ = count_parameters([self._backbone])
        self.n_passes_ = 1

    def _proba(self, X):
        logits = self._backbone.map_rows(self._backbone.logits, self.wrapped_.encode(X))
        return softmax(logits, axis=1)
