"""Stage 5: the first-order law of the logits at the end of the path, without drawing paths.

`linearise` gives the exact law of a batch: one forward pass, and one backward pass per logit. It is
what the noise scales are fitted on. `MomentTable` carries the laws of the held-out rows over to new
rows, by the margins of their logits: a forward pass and a look-up.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm, qmc

from sklearn_diffuq._inputs.batching import chunks

MAX_LINEARISED = 10  # logits per row that are followed: the largest ones
N_MOMENT_DRAWS = 64


def moment_draws(n_logits, seed):
    """Return the standard normal draws that turn logit moments into probabilities, (K, k).

    They come in pairs, z and -z: with two classes the mean's class stays the more probable one.
    """
    points = qmc.Sobol(min(MAX_LINEARISED, n_logits), rng=seed).random(N_MOMENT_DRAWS // 2)
    half = torch.as_tensor(norm.ppf(points.clip(1e-9, 1 - 1e-9)))
    return torch.cat([half, -half])


def draw_logits(logits, top, covariance, z):
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
    size = 1 + covariance.detach().diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    jitter = 1e-9 * size * torch.eye(covariance.shape[-1]).to(covariance)
    root = torch.linalg.cholesky(covariance + jitter)
    noise = torch.einsum("nij,kj->kni", root, z)
    index = top.expand(len(z), -1, -1)
    return logits.expand(len(z), -1, -1).scatter_add(2, index, noise)


@dataclass(frozen=True)
class LinearisedPath:
    """First-order law of the logits at the end of the path.

    Attributes
    ----------
    logits : Tensor of shape (n, n_classes)
        Logits of the mean path.
    top : Tensor of shape (n, k)
        Indices of the logits that are followed, the largest first.
    shared, token : Tensor of shape (n, n_steps, k, k)
        Covariance of the followed logits that unit shared or token noise in a step causes; less
        the mean of all logits, where some are not followed.
    start : Tensor of shape (n, n_steps)
        Standardised distance to the training data of the state that each step starts from.
    distance : Tensor of shape (n,)
        Mean over the judged states, see `GaussianPath`.
    """

    logits: torch.Tensor
    top: torch.Tensor
    shared: torch.Tensor
    token: torch.Tensor
    start: torch.Tensor
    distance: torch.Tensor

    @staticmethod
    def concatenate(parts):
        """Join the batches of a data set."""
        names = LinearisedPath.__dataclass_fields__
        return LinearisedPath(*(torch.cat([getattr(p, n).cpu() for p in parts]) for n in names))

    def take(self, rows):
        """Return the law of the rows `rows`, a slice or indices."""
        return LinearisedPath(*(getattr(self, n)[rows] for n in self.__dataclass_fields__))

    def covariance(self, shared, token, distance):
        """Return the covariance of the followed logits under noise scales, (n, k, k)."""
        v = torch.exp(2 * distance * self.start)[..., None, None]
        return (v * (shared**2 * self.shared + token**2 * self.token)).sum(1)

    def sample(self, shared, token, distance, z):
        """Draw logits (K, n, n_classes) under noise scales, by standard normals `z` (K, k)."""
        covariance = self.covariance(shared, token, distance)
        return draw_logits(self.logits, self.top, covariance, z)


def linearise(path, backbone, batch, perturb=None):
    """Return the `LinearisedPath` of a batch: one forward pass and one backward pass per logit.

    Parameters
    ----------
    path : GaussianPath
        Its scales do not matter.
    backbone : Backbone
    batch : dict of Tensor
    perturb : callable, default=None
        ``perturb(h, mask)`` changes the embedding (n, t, d) first.
    """
    covariance = path.covariance
    with torch.no_grad():
        h, context = backbone.embed(batch)
        h = h if perturb is None else perturb(h, context.mask)
    nudges, states = [], [h]
    with torch.enable_grad():
        for step in range(path.n_steps):
            mean = path.mean(h, step, context)
            nudges.append(torch.zeros_like(mean, requires_grad=True))
            h = mean + nudges[-1]
            states.append(h.detach())
        logits = backbone.readout(h, context)
        top = logits.detach().topk(min(MAX_LINEARISED, logits.shape[1])).indices
        # Noise common to all logits changes nothing: where only some are followed, leave it out.
        centre = logits.mean(1, keepdim=True) if top.shape[1] < logits.shape[1] else 0.0
        followed = (logits - centre).gather(1, top).sum(0)
        gradients = [torch.autograd.grad(f, nudges, retain_graph=True) for f in followed]
    distances = [path.distance(state, time, context) for time, state in enumerate(states)]
    shared, token = [], []
    for step in range(path.n_steps):
        g = torch.stack([gradient[step] for gradient in gradients], 1)  # (n, k, t, d)
        if context.mask is not None:
            g = g * context.mask[:, None, :, None]
        # Gram matrices in float64: in float32 they need not be positive semi-definite.
        pushed = g.sum(2).double() @ covariance.factor(step).double()
        shared.append(pushed @ pushed.mT)
        scaled = (g * covariance.token_variance(step).sqrt()).flatten(2).double()
        token.append(scaled @ scaled.mT)
    return LinearisedPath(
        logits.detach().double(),
        top,
        torch.stack(shared, 1),
        torch.stack(token, 1),
        torch.stack(distances[:-1], 1).double(),
        path.mean_distance(distances).double(),
    )


def linearise_all(path, backbone, inputs, device="cpu", perturb=None):
    """Return the `LinearisedPath` of all rows, on the CPU."""
    parts, order = [], []
    for rows, batch in chunks(inputs, device):
        parts.append(linearise(path, backbone, batch, perturb).take(slice(len(rows))))
        order.append(rows)
    order = torch.as_tensor(np.concatenate(order))
    return LinearisedPath.concatenate(parts).take(torch.argsort(order))
