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
    asymmetric kernel between queries and keys; each pair shares its inducing variables. All of the
    copy is then fine-tuned on an evidence lower bound; the epoch with the lowest log loss on
    held-out rows is kept.

    Works with BERT-like and ViT-like Hugging Face models, timm's ``VisionTransformer``, and
    :class:`~sklearn_diffuq.FTTransformerClassifier`.

    Parameters
    ----------
    estimator : estimator, torch.nn.Module or str, default=None
        The wrapped model, as in :class:`~sklearn_diffuq.DiffusionCalibratedClassifier`.
    preprocessor : callable or str, default=None
        Tokenizer or image transform; with a torch model only.
    n_layers : int, default=1
        Number of blocks, from the last, whose attention is replaced.
    rank : int, default=10
        Number of pairs of singular functions of each head.
    n_samples : int, default=10
        Number of samples of the posterior.
    kl_weight : float, default=1.0
        Weight of the divergence of the posterior from the prior; 1 is the evidence lower bound.
    ksvd_weight : float, default=0.1
        Weight of the squared objective of the kernel singular value decomposition.
    validation_fraction : float, default=0.2
        Share of the rows held out, per class, if `fit` is not given `X_calibration`.
    max_epochs : int, default=3
        Epochs of fine-tuning.
    batch_size : int, default=32
        Rows in a training batch.
    lr : float, default=1e-4
        Highest learning rate.
    device : str, default="auto"
        Device of a wrapped model that is not yet fitted; "auto" is CUDA when there is one.
    random_state : int, RandomState instance or None, default=None
        Seed of the wrapped model, split, training and samples.
    verbose : int, default=0
        Above 0, print one line per epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.
    wrapped_ : estimator
        The fitted wrapped classifier; it is not the one that predicts.
    history_ : list of dict
        One entry per epoch.
    n_parameters_ : int
        Number of parameters that a prediction uses.
    n_passes_ : int
        Cost of a prediction, in forward passes of the wrapped model.

    See Also
    --------
    SGPAClassifier : The same with a symmetric kernel and inducing points.

    Notes
    -----
    The kernel is the cosine of query and key. The singular functions are combinations of its
    values at landmarks, which are tokens at even distances in the row: a data-dependent projection
    with a fixed number of rows. The wrapped model's values enter through the means of the inducing
    variables only. Both sides are added; the paper can also concatenate them, which needs rows of
    one length. Other differences to the paper and its authors' code:

    - The paper trains small models from scratch. Here the singular functions start from the
      singular vectors of the kernel between landmarks, averaged over training rows, and the means
      from the least-squares fit to the wrapped model's attention. As in the code, only the
      attention of the last block is replaced by default.
    - The code combines the inputs of the attention at the landmarks, not queries and keys. The
      trace in its objective of the singular value decomposition is that of the bare weights; here
      it is that of the projections, which depend on the data. The code squares the mean over heads,
      here every head is squared.
    - Every channel of a head is a process. The code has as many processes as the rank, and a linear
      map from them to the channels.
    - A sample is one function, the same for all tokens and rows of a prediction. The code draws
      every token by itself.
    - The probabilities of samples are averaged; the code averages logits.
    - The divergence counts once for the whole training set: with ``kl_weight=1`` and without the
      misfit of the decomposition, the loss is minus the evidence lower bound, divided by the
      rows. The code adds it undivided to the mean cross-entropy, which is `kl_weight` at the number
      of training rows.

    `kl_weight` was judged by the log loss of held-out rows: a ViT on Fashion-MNIST, fine-tuned on
    4,000 rows, with 1,000 held out. With 0, 0.001, 0.01, 0.1 and 1 the loss was the same within
    0.0001 for each of three seeds, and the default is the evidence lower bound.

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
