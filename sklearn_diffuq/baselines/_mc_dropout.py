"""Monte Carlo dropout: random masks at prediction as samples of the weights."""

from contextlib import contextmanager
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval

from sklearn_diffuq.baselines._backbone_modules import count_parameters, modules_of
from sklearn_diffuq.baselines._base import COMMON, SamplingClassifier


class MCDropoutClassifier(SamplingClassifier):
    """Monte Carlo dropout around a trained transformer.

    The wrapped model is run `n_samples` times with dropout; nothing is trained. Dropout acts where
    the model's own `torch.nn.Dropout` modules act. A model without any, or whose rates are all
    zero, gets it at the inputs of the linear layers of its blocks.

    Parameters
    ----------
    estimator : estimator, torch.nn.Module or str, default=None
        The wrapped model, as in :class:`~sklearn_diffuq.DiffusionCalibratedClassifier`.
    preprocessor : callable or str, default=None
        Tokenizer or image transform; with a torch model only.
    n_samples : int, default=10
        Number of dropout masks.
    p : float, default=0.1
        Probability that a channel is left out, at all places.
    device : str, default="auto"
        Device of a wrapped model that is not yet fitted; "auto" is CUDA when there is one.
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
    DeepEnsembleClassifier : Samples from several trainings.

    Notes
    -----
    A mask is one draw for a channel, shared by all tokens and rows. It thus drops columns of the
    weight matrix behind it, which is the variational distribution of [1]_: ``W diag(z) / (1 - p)``
    with Bernoulli ``z``. A sample is one function, and a row's probabilities do not depend on
    other rows. Dropout of attention weights, which models apply inside of fused attention, has no
    such form and is left out.

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
        masks = Masks(self.p, self._seed)

        def logits(batch):
            samples = []
            for k in range(self.n_samples):
                masks.sample = k
                samples.append(backbone.logits(batch))
            return torch.stack(samples, 1)

        with backbone.frozen(), masks.on(backbone):
            return backbone.map_rows(logits, self.wrapped_.encode(X))


class Masks:
    """Dropout masks over the last axis of a tensor, fixed by the sample and the place.

    Attributes
    ----------
    sample : int
        Number of the present sample.
    """

    def __init__(self, p, seed):
        self.p, self.seed, self.sample = p, seed, 0
        self._drawn = {}

    def mask(self, place, like):
        """Return the mask of a place for the last axis of a tensor; kept channels are scaled."""
        key = (self.sample, place, like.shape[-1])
        if key not in self._drawn:
            rng = np.random.default_rng([self.seed, self.sample, place])
            kept = rng.random(like.shape[-1]) >= self.p
            self._drawn[key] = torch.from_numpy(kept / (1 - self.p)).to(like)
        return self._drawn[key]

    @contextmanager
    def on(self, backbone):
        """Apply the masks in a backbone that is in evaluation mode, for a while."""
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
