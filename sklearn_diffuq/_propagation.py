"""Stage 5: push a batch through a Gaussian path.

These functions take any callable ``(h, step, context) -> GaussianTransition`` with an attribute
`n_steps`; they know no network and no estimator.
"""

from dataclasses import replace

import numpy as np
import torch
from scipy.stats import qmc

from sklearn_diffuq._inputs import inference_batches

_POSITIONS = 32  # token noise is drawn for this many positions at once
_CHUNK_ROWS = 128  # rows times paths that are pushed through the path together


class PathNoise:
    """Standard normal draws of K paths, the same for every row.

    Common random numbers make a row's answer independent of its batch and of the order of the
    rows; the price is that the Monte Carlo errors of different rows are dependent.
    The paths come in antithetic pairs, z and -z, whose first-order errors cancel. The token-shared
    draws are scrambled Sobol points, the token draws pseudo-random.

    Parameters
    ----------
    n_paths : int
        Number of paths K.
    n_steps : int
    rank : int
        Number of token-shared directions per step.
    width : int
        Channels d of a state.
    seed : int

    Attributes
    ----------
    shared : Tensor of shape (n_paths, n_steps, rank)
    """

    def __init__(self, n_paths, n_steps, rank, width, seed):
        self.n_paths = n_paths
        self.n_drawn = (n_paths + 1) // 2
        self.width = width
        self.seed = seed
        engine = qmc.MultivariateNormalQMC(
            np.zeros(n_steps * rank), engine=qmc.Sobol(n_steps * rank, rng=seed)
        )
        points = engine.random(2 ** int(np.ceil(np.log2(self.n_drawn))))[: self.n_drawn]
        drawn = torch.as_tensor(points, dtype=torch.float32).reshape(-1, n_steps, rank)
        self.shared = self._antithetic(drawn)
        self._tokens = {}

    @classmethod
    def of(cls, path, n_paths, seed):
        """Return the noise that fits the shapes of a `GaussianPath`."""
        n_steps, width, rank = path.covariance.factors.shape
        return cls(n_paths, n_steps, rank, width, seed)

    def _antithetic(self, drawn):
        return torch.cat([drawn, -drawn])[: self.n_paths]

    def tokens(self, step, n_tokens):
        """Return the token draws of `step`, shape (n_paths, n_tokens, width).

        The draws of a position do not depend on `n_tokens`.
        """
        drawn = [self._chunk(step, i) for i in range(-(-n_tokens // _POSITIONS))]
        return self._antithetic(torch.cat(drawn, 1)[:, :n_tokens])

    def _chunk(self, step, index):
        if (step, index) not in self._tokens:
            seed = np.random.SeedSequence([self.seed, step, index]).generate_state(1)[0]
            generator = torch.Generator().manual_seed(int(seed))
            shape = (self.n_drawn, _POSITIONS, self.width)
            self._tokens[step, index] = torch.randn(shape, generator=generator)
        return self._tokens[step, index]


def tile_batch(batch, k):
    """Repeat every tensor of a batch (n, ...) path by path, to (k * n, ...)."""
    return {name: value.repeat(k, *[1] * (value.ndim - 1)) for name, value in batch.items()}


def _tile(transition, k):
    """Repeat the law of n examples for k paths."""
    n = len(transition.mean)

    def repeat(x):
        return x if x is None or len(x) != n else x.repeat(k, *[1] * (x.ndim - 1))

    return replace(
        transition,
        mean=repeat(transition.mean),
        shared_variance=repeat(transition.shared_variance),
        token_variance=repeat(transition.token_variance),
        mask=repeat(transition.mask),
    )


def sample_paths(path, h, context, tiled_context, noise):
    """Draw K paths from the state `h` and return the last state of each.

    Parameters
    ----------
    path : callable (h, step, context) -> GaussianTransition, with attribute `n_steps`
    h : Tensor of shape (n, t, d)
        Embedding.
    context, tiled_context : Context
        Of the n rows, and of the same rows repeated for the K paths.
    noise : PathNoise

    Returns
    -------
    state : Tensor of shape (K * n, t, d)
        Path by path.
    variance : Tensor of shape (n, n_steps)
        Mean over paths, tokens and channels of the variance added by each step.
    """
    n, t = h.shape[:2]
    variances = []
    for step in range(path.n_steps):
        # All paths start in the same state, so the first law is computed once.
        transition = (
            path(h, step, tiled_context) if step else _tile(path(h, 0, context), noise.n_paths)
        )
        variances.append(mean_variance(transition).reshape(noise.n_paths, n).mean(0))
        z = noise.shared[:, step].to(h).repeat_interleave(n, 0)
        eps = noise.tokens(step, t).to(h).repeat_interleave(n, 0)
        h = transition.sample(z, eps)
    return h, torch.stack(variances, 1)


def mean_path(path, h, context):
    """Follow the mean of the path from `h` (n, t, d); return the last state and the variances."""
    variances = []
    for step in range(path.n_steps):
        transition = path(h, step, context)
        variances.append(mean_variance(transition))
        h = transition.mean
    return h, torch.stack(variances, 1)


def mean_variance(transition):
    """Return the variance of each example, averaged over its real tokens and channels, (n,)."""
    variance = transition.marginal_variance().mean(2)
    if transition.mask is None:
        return variance.mean(1)
    return variance.sum(1) / transition.mask.sum(1).clamp_min(1)


def propagate(path, backbone, batch, noise=None):
    """Return the logits at the end of the path.

    Parameters
    ----------
    path : callable, see `sample_paths`
    backbone : Backbone
        Embeds the batch and reads the last state out.
    batch : dict of Tensor
        n rows of model inputs.
    noise : PathNoise or None
        None follows the mean.

    Returns
    -------
    logits : Tensor of shape (K, n, n_classes)
        K = 1 without noise.
    variance : Tensor of shape (n, n_steps)
    """
    h, context = backbone.embed(batch)
    if noise is None:
        h, variance = mean_path(path, h, context)
        return backbone.readout(h, context)[None], variance
    n = len(h)
    _, tiled = backbone.embed(tile_batch(batch, noise.n_paths))
    h, variance = sample_paths(path, h, context, tiled, noise)
    return backbone.readout(h, tiled).unflatten(0, (noise.n_paths, n)), variance


@torch.no_grad()
def path_distances(path, backbone, batch):
    """Return the standardised distances of the mean path's states to the data, (n, n_steps)."""
    h, context = backbone.embed(batch)
    distances = []
    for step in range(path.n_steps):
        h = path.mean(h, step, context)
        distances.append(path.covariance.distance(h, step, context.mask))
    return torch.stack(distances, 1)


def path_probabilities(logits, temperature):
    """Return the class probabilities of every path, float64, shape (K, n, n_classes)."""
    return torch.softmax(logits.double() / temperature, -1)


def chunks(inputs, device="cpu", n_paths=1):
    """Yield ``(rows, batch)``; the shape of a row's batch depends on nothing but the row.

    The batch may hold more rows than `rows`: only the first ``len(rows)`` count.
    """
    max_rows = max(1, _CHUNK_ROWS // max(n_paths, 4))
    for rows, padded_rows, length in inference_batches(inputs, max_rows):
        yield rows, inputs.batch(padded_rows, length, device)


def real_rows(inputs, device="cpu"):
    """Yield the batches of `chunks` without the repeated rows that fill them up."""
    for rows, batch in chunks(inputs, device):
        yield {name: value[: len(rows)] for name, value in batch.items()}


@torch.no_grad()
def logits_of(path, backbone, inputs, noise=None, device="cpu"):
    """Return the logits of all rows at the end of the path, shape (K, n, n_classes), on the CPU."""
    n_paths = 1 if noise is None else noise.n_paths
    out = None
    for rows, batch in chunks(inputs, device, n_paths):
        logits, _ = propagate(path, backbone, batch, noise)
        if out is None:
            out = torch.empty(n_paths, len(inputs), logits.shape[2])
        out[:, rows] = logits[:, : len(rows)].float().cpu()
    return out
