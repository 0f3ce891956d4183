"""Stage 5: push a batch through a Gaussian path.

These functions take any callable ``(h, step, context) -> GaussianTransition`` with an attribute
`n_steps`; they know no network and no estimator.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from sklearn_diffuq._inputs.batching import chunks


def tile_batch(batch, k):
    """Repeat every tensor of a batch (n, ...) path by path, to (k * n, ...)."""
    return {name: value.repeat(k, *[1] * (value.ndim - 1)) for name, value in batch.items()}


def _tile(transition, k):
    """Repeat the law of n examples for k paths."""
    n = len(transition.mean)

    def repeat(x):
        return x if x is None or len(x) != n else x.repeat(k, *[1] * (x.ndim - 1))

    per_row = ("mean", "shared_variance", "token_variance", "mask", "distance")
    return replace(transition, **{name: repeat(getattr(transition, name)) for name in per_row})


@dataclass(frozen=True)
class PathEnd:
    """Where paths have led, and what was seen on the way.

    Attributes
    ----------
    outcome : Tensor of shape (K * n, t, d) or (K, n, n_classes)
        The last states, path by path; or the logits they give.
    variance : Tensor of shape (n, n_steps)
        Mean over paths, tokens and channels of the variance added by each step.
    distance : Tensor of shape (n,)
        Standardised distance to the training data, mean over paths and judged states (see
        `GaussianPath`); zero where the path does not depend on it.
    """

    outcome: torch.Tensor
    variance: torch.Tensor
    distance: torch.Tensor

    @staticmethod
    def of(state, laws, n, n_paths=1):
        """Collect what the `laws` of the steps say of `n` rows on `n_paths` paths each."""

        def over_paths(x):
            return x.unflatten(0, (n_paths, n)).mean(0)

        variance = torch.stack([over_paths(law.mean_variance()) for law in laws], 1)
        seen = [over_paths(law.distance) for law in laws if law.distance is not None]
        distance = torch.cat(seen, 1).mean(1) if seen else variance.new_zeros(n)
        return PathEnd(state, variance, distance)

    def take(self, n):
        """Return the first `n` rows, on the CPU; `outcome` holds logits."""
        return PathEnd(self.outcome[:, :n].cpu(), self.variance[:n].cpu(), self.distance[:n].cpu())


def sample_paths(path, h, context, tiled_context, noise):
    """Draw K paths from the state `h` and return where they end.

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
    end : PathEnd
    """
    n, t = h.shape[:2]
    laws = []
    for step in range(path.n_steps):
        # All paths start in the same state, so the first law is computed once.
        law = path(h, step, tiled_context) if step else _tile(path(h, 0, context), noise.n_paths)
        laws.append(replace(law, mean=None))  # the states need not be kept
        z = noise.shared[:, step].to(h).repeat_interleave(n, 0)
        eps = noise.tokens(step, t).to(h).repeat_interleave(n, 0)
        h = law.sample(z, eps)
    return PathEnd.of(h, laws, n, noise.n_paths)


def mean_path(path, h, context):
    """Follow the mean of the path from `h` (n, t, d) and return its `PathEnd`."""
    laws, n = [], len(h)
    for step in range(path.n_steps):
        law = path(h, step, context)
        laws.append(replace(law, mean=None))
        h = law.mean
    return PathEnd.of(h, laws, n)


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
    end : PathEnd
        Its outcome are the logits, (K, n, n_classes); K = 1 without noise.
    """
    h, context = backbone.embed(batch)
    if noise is None:
        end = mean_path(path, h, context)
        return replace(end, outcome=backbone.readout(end.outcome, context)[None])
    _, tiled = backbone.embed(tile_batch(batch, noise.n_paths))
    end = sample_paths(path, h, context, tiled, noise)
    logits = backbone.readout(end.outcome, tiled).unflatten(0, (noise.n_paths, len(h)))
    return replace(end, outcome=logits)


@torch.no_grad()
def path_distance(path, backbone, batch):
    """Return the mean distance (n,) of the mean path's judged states to the training data."""
    h, context = backbone.embed(batch)
    distances = {0: path.distance(h, 0, context)} if 0 in path.judged else {}
    for step in range(path.n_steps):
        h = path.mean(h, step, context)
        distances[step + 1] = path.distance(h, step + 1, context)
    return path.mean_distance(distances)


def path_probabilities(logits, temperature):
    """Return the class probabilities of every path, float64, shape (K, n, n_classes).

    `temperature` is one number, or one of each row, (n, 1).
    """
    return torch.softmax(logits.double() / temperature, -1)


@torch.no_grad()
def propagate_all(path, backbone, inputs, noise=None, device="cpu", common=True):
    """Return the `PathEnd` of all rows on the CPU, float32; its outcome are logits (K, n, C).

    With `common` all rows get the same draws, as in predictions; without, each batch its own, so
    that the Monte Carlo errors of a mean over rows cancel.
    """
    parts, order = [], []
    n_paths = 1 if noise is None else noise.n_paths
    for i, (rows, batch) in enumerate(chunks(inputs, device, n_paths)):
        drawn = noise if common or noise is None else noise.redrawn(i)
        parts.append(propagate(path, backbone, batch, drawn).take(len(rows)))
        order.append(rows)
    order = torch.argsort(torch.as_tensor(np.concatenate(order)))
    return PathEnd(
        torch.cat([p.outcome for p in parts], 1)[:, order].float(),
        torch.cat([p.variance for p in parts])[order].float(),
        torch.cat([p.distance for p in parts])[order].float(),
    )


def logits_of(path, backbone, inputs, noise=None, device="cpu"):
    """Return the logits of all rows at the end of the path, shape (K, n, n_classes), on the CPU."""
    return propagate_all(path, backbone, inputs, noise, device).outcome
