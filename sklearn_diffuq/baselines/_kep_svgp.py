"""Kernel-eigen-pair sparse variational Gaussian process attention (KEP-SVGP)."""

from numbers import Integral, Real
from typing import ClassVar

from sklearn.utils._param_validation import Interval

from sklearn_diffuq.baselines._attention_classifier import AttentionClassifier
from sklearn_diffuq.baselines._base import COMMON, TRAINING
from sklearn_diffuq.baselines._kernel_eigen_attention import KernelEigenAttention


class KEPSVGPClassifier(AttentionClassifier):
    """Kernel-eigen-pair Gaussian process attention in the last blocks of a trained transformer.

    In a copy of the wrapped model, the attention of the last `n_layers` blocks becomes the
    posterior of a sparse Gaussian process along the left and right singular functions of the
    asymmetric kernel between queries and keys; the functions of a pair share their inducing
    variables. All parameters of the copy are then fine-tuned with an evidence lower bound. The
    epoch with the lowest log loss on held-out rows is kept.

    Works with BERT-like and ViT-like Hugging Face models, timm's ``VisionTransformer``, and
    :class:`~sklearn_diffuq.FTTransformerClassifier`.

    Parameters
    ----------
    estimator : estimator, torch.nn.Module or str, default=None
        The wrapped model, as in :class:`~sklearn_diffuq.DiffusionCalibratedClassifier`.
    preprocessor : callable or str, default=None
        Tokenizer or image transform; with a torch model only.
    n_layers : int, default=1
        Number of blocks whose attention is replaced, counted from the last.
    rank : int, default=10
        Number of pairs of singular functions per head.
    n_samples : int, default=10
        Number of samples of the posterior.
    kl_weight : float, default=1.0
        Weight of the KL divergence of the posterior from the prior; 1 gives the evidence lower
        bound.
    ksvd_weight : float, default=0.1
        Weight of the squared objective of the kernel singular value decomposition.
    validation_fraction : float, default=0.2
        Fraction of the rows of each class to hold out if `fit` gets no `X_calibration`.
    max_epochs : int, default=3
        Epochs of fine-tuning.
    batch_size : int, default=32
        Rows in a training batch.
    lr : float, default=1e-4
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
        The fitted wrapped classifier. Predictions come from a fine-tuned copy.
    history_ : list of dict
        One entry per epoch.
    n_parameters_ : int
        Number of parameters that a prediction uses.
    n_passes_ : int
        Cost of a prediction, in forward passes of the wrapped model.

    See Also
    --------
    SGPAClassifier : A Gaussian process with a symmetric kernel and inducing points.

    Notes
    -----
    The kernel is the cosine of query and key. The singular functions are combinations of its
    values at landmarks, which are evenly spaced tokens of the row: a data-dependent projection of
    fixed size. The wrapped model's values are used only to initialise the means of the inducing
    variables. Both sides are added; the paper can also concatenate them, which needs rows of one
    length. Other differences from the paper and its authors' code:

    - The paper trains small models from scratch. Here the singular functions are initialised with
      the singular vectors of the kernel between landmarks, averaged over training rows, and the
      means with a least-squares fit to the wrapped model's attention. As in the code, only the
      attention of the last block is replaced by default.
    - The code combines the inputs of the attention at the landmarks, not queries and keys. The
      trace in its objective for the singular value decomposition uses the bare weights; here it
      uses the projections, which depend on the data. The code squares the mean over heads; here
      each head is squared.
    - Every channel of a head is a process. The code has as many processes as the rank, and a linear
      map from them to the channels.
    - A sample is one function, the same for all tokens and rows of a prediction. The code draws
      each token independently.
    - The probabilities of samples are averaged; the code averages logits.
    - The divergence counts once for the whole training set: with ``kl_weight=1`` and without the
      misfit of the decomposition, the loss is the negative evidence lower bound, divided by the
      number of rows. The code adds the divergence, undivided, to the mean cross-entropy, which
      corresponds to a `kl_weight` equal to the number of training rows.

    The default of `kl_weight` is the evidence lower bound. With a ViT on Fashion-MNIST (4,000 rows
    for fine-tuning, 1,000 held out), the log loss on held-out rows was the same within 0.0001 for
    0, 0.001, 0.01, 0.1 and 1, for each of three seeds.

    References
    ----------
    .. [1] Y. Chen et al., "Self-Attention through Kernel-Eigen Pair Sparse Variational Gaussian
       Processes", ICML 2024, section 3, :arxiv:`2402.01476`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_diffuq import FTTransformerClassifier
    >>> from sklearn_diffuq.baselines import KEPSVGPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = FTTransformerClassifier(n_blocks=2, width=8, max_epochs=2, device="cpu")
    >>> clf = KEPSVGPClassifier(model, rank=2, n_samples=2, max_epochs=1, random_state=0).fit(X, y)
    >>> clf.sample_proba(X).shape
    (2, 150, 3)
    """

    _parameter_constraints: ClassVar[dict] = {
        **COMMON,
        **TRAINING,
        "n_layers": [Interval(Integral, 1, None, closed="left")],
        "rank": [Interval(Integral, 1, None, closed="left")],
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "kl_weight": [Interval(Real, 0, None, closed="left")],
        "ksvd_weight": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        estimator=None,
        *,
        preprocessor=None,
        n_layers=1,
        rank=10,
        n_samples=10,
        kl_weight=1.0,
        ksvd_weight=0.1,
        validation_fraction=0.2,
        max_epochs=3,
        batch_size=32,
        lr=1e-4,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.preprocessor = preprocessor
        self.n_layers = n_layers
        self.rank = rank
        self.n_samples = n_samples
        self.kl_weight = kl_weight
        self.ksvd_weight = ksvd_weight
        self.validation_fraction = validation_fraction
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _attention(self, projections, seed, rng):
        return KernelEigenAttention.start(projections, self.rank, seed)

    def _penalty(self, n):
        misfit = sum(attention.misfit for attention in self._attentions)
        return super()._penalty(n) + self.ksvd_weight * misfit
