"""Monte Carlo dropout: random masks at prediction time are samples of the weights."""

from contextlib import contextmanager
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval

from sklearn_diffuq._inputs.rows import check_n_samples
from sklearn_diffuq.baselines._backbone_modules import count_parameters, modules_of
from sklearn_diffuq.baselines._base import COMMON, SamplingClassifier


class MCDropoutClassifier(SamplingClassifier):
    """Monte Carlo dropout around a trained transformer.

    The wrapped model is run `n_samples` times with dropout; nothing is trained. Dropout is applied
    at the model's own `torch.nn.Dropout` modules. If there are none with a positive rate, it is
    applied to the inputs of the linear layers of the blocks.

    Parameters
    ----------
    estimator : estimator, torch.nn.Module or str, default=None
        The wrapped model, as in :class:`~sklearn_diffuq.DiffusionCalibratedClassifier`.
    preprocessor : callable or str, default=None
        Tokenizer or image transform; with a torch model only.
    n_samples : int, default=10
        Number of dropout masks.
    p : float, default=0.1
        Probability of dropping a channel, at every place.
    device : str, default="auto"
        Device of a wrapped model that is not fitted yet; "auto" uses CUDA if available.
    random_state : int, RandomState instance or None, default=None
        Seed of the wrapped model and of the masks.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.
    wrapped_ : estimator
        The fitted wrapped classifier.
    n_parameters_ : int
        Number of parameters that a prediction uses.
    n_passes_ : int
        Cost of a prediction, in forward passes of the wrapped model.

    See Also
    --------
    DeepEnsembleClassifier : Samples from several training runs.

    Notes
    -----
    All tokens and rows share the mask of a sample. A mask therefore drops columns of the weight
    matrix that follows, as in the variational distribution of [1]_: ``W diag(z) / (1 - p)`` with
    Bernoulli ``z``. Each sample is one function, and a row's probabilities do not depend on other
    rows. Dropout of attention weights inside of fused attention does not have this form and is not
    applied.

    References
    ----------
    .. [1] Y. Gal and Z. Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016,
       eqs. 4 and 6, :arxiv:`1506.02142`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_diffuq import FTTransformerClassifier
    >>> from sklearn_diffuq.baselines import MCDropoutClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = FTTransformerClassifier(n_blocks=2, width=8, max_epochs=2, device="cpu")
    >>> clf = MCDropoutClassifier(model, n_samples=4, random_state=0).fit(X, y)
    >>> clf.sample_proba(X).shape
    (4, 150, 3)
    """

    _needs_held_out: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict] = {
        **COMMON,
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "p": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        estimator=None,
        *,
        preprocessor=None,
        n_samples=10,
        p=0.1,
        device="auto",
        random_state=None,
    ):
        self.estimator = estimator
        self.preprocessor = preprocessor
        self.n_samples = n_samples
        self.p = p
        self.device = device
        self.random_state = random_state

    def _fit(self, training, held_out, seed):
        self._seed = seed
        self.n_parameters_ = count_parameters([self.wrapped_.backbone_])
        self.n_passes_ = self.n_samples

    def _sample_logits(self, X):
        backbone = self.wrapped_.backbone_
        if not isinstance(self.p, Real) or not 0 <= self.p < 1:  # it may be set after fit
            raise ValueError(f"p must be a number in [0, 1), got {self.p!r}.")
        masks, n_samples = Masks(self.p, self._seed), check_n_samples(self.n_samples)

        def logits(batch):
            samples = []
            for k in range(n_samples):
                masks.sample = k
                samples.append(backbone.logits(batch))
            return torch.stack(samples, 1)

        with backbone.frozen(), masks.on(backbone):
            return backbone.map_rows(logits, self.wrapped_.encode(X))


class Masks:
    """Dropout masks over the last axis of a tensor, determined by sample and place.

    Attributes
    ----------
    sample : int
        Number of the current sample.
    """

    def __init__(self, p, seed):
        self.p, self.seed, self.sample = p, seed, 0
        self._drawn = {}

    def mask(self, place, like):
        """Return the mask for the last axis of a tensor at a place; kept channels are scaled."""
        key = (self.sample, place, like.shape[-1])
        if key not in self._drawn:
            rng = np.random.default_rng([self.seed, self.sample, place])
            kept = rng.random(like.shape[-1]) >= self.p
            self._drawn[key] = torch.from_numpy(kept / (1 - self.p)).to(like)
        return self._drawn[key]

    @contextmanager
    def on(self, backbone):
        """Return a context in which the masks act in a backbone, which is in evaluation mode."""
        own = [
            module
            for module in modules_of(backbone).modules()
            if isinstance(module, torch.nn.Dropout) and module.p > 0
        ]

        def after(place):
            return lambda module, args, output: output * self.mask(place, output)

        def before(place):
            return lambda module, args: (args[0] * self.mask(place, args[0]), *args[1:])

        if own:
            handles = [m.register_forward_hook(after(i)) for i, m in enumerate(own)]
        else:
            linear = [
                module
                for block in backbone.blocks
                for module in block.modules()
                if isinstance(module, torch.nn.Linear)
            ]
            handles = [m.register_forward_pre_hook(before(i)) for i, m in enumerate(linear)]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
