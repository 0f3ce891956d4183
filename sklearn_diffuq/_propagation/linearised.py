"""The logits at the end of the path to first order: Gaussian, without drawing paths.

`linearise` gives the law of a batch by one forward pass, and one backward pass per logit but one.
The noise scales are fitted on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from scipy.stats import norm, qmc
from torch import Tensor

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import Batch, Context
from sklearn_diffuq._inputs.batching import kept_chunk, unpadded_batches
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._inputs.not_finite import NotFiniteError, rows_not_finite
from sklearn_diffuq._path.distance import widening
from sklearn_diffuq._path.path import GaussianPath

MAX_LINEARISED = 10  # logits per row that are followed: the largest ones
N_MOMENT_DRAWS = 64

Scale = Tensor | float
Perturb = Callable[[Tensor, Tensor | None], Tensor]  # (h, mask) -> changed h


@lru_cache(maxsize=16)
def moment_draws(n_logits: int, seed: int) -> Tensor:
    """Return the standard normal draws that turn logit moments into probabilities, (K, k).

    They come in pairs, z and -z: with two classes the mean's class stays the more probable one.
    """
    points = qmc.Sobol(min(MAX_LINEARISED, n_logits), rng=seed).random(N_MOMENT_DRAWS // 2)
    half = torch.as_tensor(norm.ppf(np.clip(points, 1e-9, 1 - 1e-9)))
    return torch.cat([half, -half])


def draw_logits(logits: Tensor, top: Tensor, covariance: Tensor, z: Tensor) -> Tensor:
    """Draw logits (K, n, n_classes), normal around `logits`.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
    top : Tensor of shape (n, k)
        Which logits vary.
    covariance : Tensor of shape (n, k, k)
        How they do.
    z : Tensor of shape (K, k)
        Standard normals.
    """
    size = 1 + covariance.detach().diagonal(dim1=1, dim2=2).mean(1, keepdim=True)[..., None]
    jitter = 1e-9 * size * torch.eye(covariance.shape[-1]).to(covariance)
    root, _ = torch.linalg.cholesky_ex(covariance + jitter)
    noise = (root @ z.T).permute(2, 0, 1)
    index = top.expand(len(z), -1, -1)
    return logits.expand(len(z), -1, -1).scatter_add(2, index, noise)


@dataclass(frozen=True)
class LinearisedPath:
    """First-order law of the logits at the end of the path (eq. 5.1).

    Attributes
    ----------
    logits : Tensor of shape (n, n_classes)
        Logits of the mean path.
    top : Tensor of shape (n, k)
        Indices of the logits that are followed, the largest first.
    shared, token : Tensor of shape (n, n_steps, k, k)
        Covariance that unit shared or token noise in a step causes, of the followed logits less the
        mean of all logits.
    start : Tensor of shape (n, n_steps)
        Standardised distance to the training data of the state that each step starts from.
    distance : Tensor of shape (n,)
        Mean over the scored times, see `GaussianPath`.
    """

    logits: Tensor
    top: Tensor
    shared: Tensor
    token: Tensor
    start: Tensor
    distance: Tensor

    def take(self, rows: Tensor | slice) -> "LinearisedPath":
        """Return the law of the rows `rows`, a slice or indices."""
        return LinearisedPath(*(getattr(self, field.name)[rows] for field in fields(self)))

    def covariance(self, shared: Scale, token: Scale, distance: Scale) -> Tensor:
        """Return the covariance of the followed logits under noise scales, (n, k, k)."""
        v = widening(2 * distance, self.start)[..., None, None]
        return (v * (shared**2 * self.shared + token**2 * self.token)).sum(1)

    def sample(self, shared: Scale, token: Scale, distance: Scale, z: Tensor) -> Tensor:
        """Draw logits (K, n, n_classes) under noise scales, by standard normals `z` (K, k)."""
        covariance = self.covariance(shared, token, distance)
        return draw_logits(self.logits, self.top, covariance, z)


def linearise(
    path: GaussianPath, backbone: Backbone, batch: Batch, perturb: Perturb | None = None
) -> LinearisedPath:
    """Return the `LinearisedPath` of a batch: one forward, and one backward pass per logit but one.

    Where gradients do not pass the model, noise causes no covariance.

    Parameters
    ----------
    path : GaussianPath
        Its scales do not matter.
    backbone : Backbone
    batch : dict of Tensor
    perturb : callable, default=None
        ``perturb(h, mask)`` changes the embedding (n, t, d) first.
    """
    with torch.no_grad():
        h, context = backbone.embed(batch)
        h = h if perturb is None else perturb(h, context.mask)
    nudges, states = [], [h]
    with torch.enable_grad():
        for interval in path.steps:
            mean = path.mean(h, interval, context)
            nudges.append(torch.zeros_like(mean, requires_grad=True))
            h = mean + nudges[-1]
            states.append(h.detach())
        logits = backbone.readout(h, context)
        top = logits.detach().topk(min(MAX_LINEARISED, logits.shape[1])).indices
        # Noise common to all logits changes nothing. Without it the last of all logits is what the
        # others leave: with two classes one backward pass is enough.
        n_followed = top.shape[1] - (top.shape[1] == logits.shape[1])
        if backbone.passes_gradients:
            gradients = _gradients(logits, top[:, :n_followed], nudges)
        else:  # what autograd gives are those of the other layers alone
            shape = len(top), n_followed
            gradients = [nudge.new_zeros(*shape, *nudge.shape[1:]) for nudge in nudges]
    with torch.no_grad():
        shared, token = (
            _with_the_last(c, top.shape[1])
            for c in _unit_covariances(path, gradients, context.mask)
        )
        start, distance = _distances(path, states, context)
    return LinearisedPath(logits.detach().double(), top, shared, token, start, distance)


def _gradients(logits: Tensor, top: Tensor, nudges: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient (n, k, t, d) of logits less their mean with respect to each nudge."""
    followed = (logits - logits.mean(1, keepdim=True)).gather(1, top).sum(0)
    of_logits = [
        torch.autograd.grad(f, nudges, retain_graph=i + 1 < len(followed))
        for i, f in enumerate(followed)
    ]
    return [torch.stack(of_step, 1) for of_step in zip(*of_logits, strict=True)]


def _unit_covariances(
    path: GaussianPath, gradients: Sequence[Tensor], mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the covariances (n, n_steps, k, k) that unit shared and token noise cause."""
    shared, token = [], []
    for interval, gradient in zip(path.steps, gradients, strict=True):
        g = gradient if mask is None else gradient * mask[:, None, :, None]
        # Gram matrices in float64: in float32 they need not be positive semi-definite.
        pushed = g.sum(2).double() @ path.covariance.factor(interval).double()
        shared.append(pushed @ pushed.mT)
        scaled = (g * path.covariance.token_variance(interval).sqrt()).flatten(2).double()
        token.append(scaled @ scaled.mT)
    return torch.stack(shared, 1), torch.stack(token, 1)


def _with_the_last(covariance: Tensor, k: int) -> Tensor:
    """Return covariances (.., k, k), given those of the first k or k - 1 of values of sum zero."""
    known = covariance.shape[-1]
    if known == k:
        return covariance
    of_known = torch.cat([torch.eye(known), -torch.ones(1, known)]).to(covariance)
    return of_known @ covariance @ of_known.T


def _distances(
    path: GaussianPath, states: Sequence[Tensor], context: Context
) -> tuple[Tensor, Tensor]:
    """Return the distance at the start of each step (n, n_steps), and the mean one (n,)."""
    looks = {
        time: path.covariance.look(states[time], block, context.real)
        for time, block in enumerate(path.grid)
        if block in path.covariance.blocks
    }
    distances = path.distances_of(looks, context.beyond)
    unknown = torch.zeros(len(states[0]), device=states[0].device)
    start = [unknown if d is None else d for d in distances[:-1]]
    mean = path.mean_distance(distances)
    return torch.stack(start, 1).double(), (unknown if mean is None else mean).double()


def linearise_all(
    path: GaussianPath, backbone: Backbone, inputs: EncodedInputs, perturb: Perturb | None = None
) -> LinearisedPath:
    """Return the `LinearisedPath` of all rows, on the CPU.

    Its last bits depend on which rows there are, and how far `perturb` goes on their order.

    Raises
    ------
    NotFiniteError
        If logits or covariances are NaN or infinite; it names the rows.
    """
    order, laws = [], []
    chunk = kept_chunk(inputs, backbone.device)
    for rows, batch in unpadded_batches(inputs, backbone.device, *chunk):
        try:
            laws.append(linearise(path, backbone, batch, perturb))
        except NotFiniteError as error:
            raise inputs.refusal(rows[error.rows]) from None
        order.append(rows)
    back = torch.from_numpy(np.argsort(np.concatenate(order)))
    law = LinearisedPath(
        *(torch.cat([getattr(law, f.name) for law in laws]).cpu()[back] for f in fields(laws[0]))
    )
    bad = [rows_not_finite(getattr(law, field.name)) for field in fields(law)]
    if any(map(len, bad)):
        raise inputs.refusal(np.unique(np.concatenate(bad)))
    return law
