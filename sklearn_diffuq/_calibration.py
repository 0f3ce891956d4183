"""Stage 5: fit temperature and noise scales on held-out rows.

Noise scales are not identified by imitating a deterministic model: only labels tell. The path is
linearised around its mean, where the covariance of the logits is a known function of the scales;
its negative log-likelihood is cheap and smooth, and is minimised in float64. For sampling, real
paths are then drawn with a few multiples of those scales, and the best one is taken.
"""

import warnings
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import norm, qmc
from sklearn.exceptions import ConvergenceWarning

from sklearn_diffuq._covariance import NoiseScales
from sklearn_diffuq._propagation import chunks, logits_of, mean_variance

LOG_TEMPERATURE_BOUNDS = (np.log(1e-2), np.log(1e2))
MAX_LINEARISED = 10  # logits per row that the linearised path follows: the largest ones
N_MOMENT_DRAWS = 64
MIN_NOISE_ROWS = 30  # fewer held-out rows fit a temperature only
MAX_NOISE_ROWS = 1024  # more say little that is new about three scales
MAX_SAMPLED_ROWS = 512  # for the paths that are really drawn
SHRINKAGE = (0.125, 0.35, 1.0)


def path_nll(logits, y, temperature, weight=None):
    """Return the negative log-likelihood of the averaged probabilities of K paths.

    Parameters
    ----------
    logits : Tensor of shape (K, n, n_classes)
    y : Tensor of shape (n,)
        Class indices.
    temperature : float or Tensor
    weight : Tensor of shape (n,), default=None

    Returns
    -------
    nll : Tensor
        Weighted mean of ``-log (1/K) sum_k softmax(logits_k / T)_y``, in nats.
    """
    log_p = torch.log_softmax(logits.double() / temperature, -1)
    log_p = log_p.gather(-1, y.expand(len(logits), -1)[..., None])[..., 0]
    loss = np.log(len(logits)) - torch.logsumexp(log_p, 0)
    return loss.mean() if weight is None else (loss * weight).sum() / weight.sum()


def fit_temperature(logits, y, weight=None):
    """Fit a temperature in [0.01, 100] by `path_nll`, with a weak prior.

    The prior on its logarithm is standard normal: it weighs as much as one row, and keeps the
    temperature finite where all held-out rows are right.

    Returns
    -------
    temperature : float
    nll : float
        `path_nll` there.

    Examples
    --------
    >>> import torch
    >>> from sklearn_diffuq._calibration import fit_temperature
    >>> y = torch.tensor([0, 0, 0, 1] * 1000)  # right three times out of four
    >>> logits = torch.tensor([[[5.0, 0.0]]]).expand(1, 4000, 2)
    >>> temperature, nll = fit_temperature(logits, y)
    >>> round(5 / temperature, 2)  # log(3)
    1.1
    """
    n = effective_size(y, weight)

    def loss(log_t):
        return float(path_nll(logits, y, np.exp(log_t), weight)) + 0.5 * log_t**2 / n

    result = minimize_scalar(
        loss, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(result.x)), float(path_nll(logits, y, np.exp(result.x), weight))


def effective_size(y, weight):
    """Return the number of rows, or Kish's effective number of weighted rows."""
    return len(y) if weight is None else float(weight.sum() ** 2 / weight.square().sum())


@dataclass(frozen=True)
class LinearisedPath:
    """First-order law of the logits at the end of the path.

    Attributes
    ----------
    logits : Tensor of shape (n, n_classes)
        Logits of the mean path.
    top : Tensor of shape (n, k)
        Indices of the logits that are followed.
    shared, token : Tensor of shape (n, n_steps, k, k)
        Covariance of the followed logits that unit shared or token noise in a step causes; less
        the mean of all logits, where some are not followed.
    distance : Tensor of shape (n, n_steps)
        Standardised distance of the states to the training data.
    variance : Tensor of shape (n, n_steps)
        Mean variance that each step adds under the path's own scales.
    """

    logits: torch.Tensor
    top: torch.Tensor
    shared: torch.Tensor
    token: torch.Tensor
    distance: torch.Tensor
    variance: torch.Tensor

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
        v = torch.exp(distance * self.distance)[..., None, None]
        return (v * (shared**2 * self.shared + token**2 * self.token)).sum(1)

    def sample(self, scales, z):
        """Draw logits (K, n, n_classes) with standard normals `z` of shape (K, k).

        `scales` is a `NoiseScales` or a triple of tensors, in its order.
        """
        if isinstance(scales, NoiseScales):
            scales = astuple(scales)
        covariance = self.covariance(*scales)
        size = 1 + covariance.detach().diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        jitter = 1e-9 * size * torch.eye(covariance.shape[-1]).to(covariance)
        root = torch.linalg.cholesky(covariance + jitter)
        noise = torch.einsum("nij,kj->kni", root, z)
        index = self.top.expand(len(z), -1, -1)
        return self.logits.expand(len(z), -1, -1).scatter_add(2, index, noise)


def linearise(path, backbone, batch):
    """Return the `LinearisedPath` of a batch: one forward pass and one backward pass per logit.

    Parameters
    ----------
    path : GaussianPath
        Its scales are used for `LinearisedPath.variance` only.
    backbone : Backbone
    batch : dict of Tensor
    """
    covariance = path.covariance
    with torch.no_grad():
        h, context = backbone.embed(batch)
    nudges, distance, variance = [], [], []
    with torch.enable_grad():
        for step in range(path.n_steps):
            law = path(h, step, context)
            h = law.mean
            variance.append(mean_variance(law).detach())
            distance.append(covariance.distance(h.detach(), step, context.mask))
            nudges.append(torch.zeros_like(h, requires_grad=True))
            h = h + nudges[-1]
        logits = backbone.readout(h, context)
        top = logits.detach().topk(min(MAX_LINEARISED, logits.shape[1])).indices
        # Noise common to all logits changes nothing: where only some are followed, leave it out.
        centre = logits.mean(1, keepdim=True) if top.shape[1] < logits.shape[1] else 0.0
        followed = (logits - centre).gather(1, top).sum(0)
        gradients = [torch.autograd.grad(f, nudges, retain_graph=True) for f in followed]
    shared, token = [], []
    for step in range(path.n_steps):
        g = torch.stack([gradient[step] for gradient in gradients], 1)  # (n, k, t, d)
        if context.mask is not None:
            g = g * context.mask[:, None, :, None]
        # Gram matrices in float64: in float32 they need not be positive semi-definite.
        pushed = g.sum(2).double() @ covariance.factors[step].double()
        shared.append(pushed @ pushed.mT)
        scaled = (g * covariance.token_variances[step].sqrt()).flatten(2).double()
        token.append(scaled @ scaled.mT)
    return LinearisedPath(
        logits.detach().double(),
        top,
        torch.stack(shared, 1),
        torch.stack(token, 1),
        torch.stack(distance, 1).double(),
        torch.stack(variance, 1).double(),
    )


@dataclass(frozen=True)
class Calibration:
    """What held-out rows say for one kind of inference.

    Attributes
    ----------
    scales : NoiseScales
        All zero where noise does not help.
    temperature : float
    nll : float
        Held-out negative log-likelihood.
    """

    scales: NoiseScales
    temperature: float
    nll: float


def moment_draws(n_logits, seed):
    """Return the standard normal draws that turn logit moments into probabilities, (K, k)."""
    points = qmc.Sobol(min(MAX_LINEARISED, n_logits), rng=seed).random(N_MOMENT_DRAWS)
    return torch.as_tensor(norm.ppf(points.clip(1e-9, 1 - 1e-9)))


# Bounds of log(shared), log(token), distance, log(temperature).
_BOUNDS = [(np.log(1e-3), 0.0), (np.log(1e-3), 0.0), (0.0, 2.0), LOG_TEMPERATURE_BOUNDS]
_STARTS = [(0.3, 0.03, 0.1), (0.03, 0.3, 0.1)]
# A weak normal prior, which counts where held-out rows are few: centres and precisions.
_PRIOR = [(np.log(0.1), 0.5), (np.log(0.1), 0.5), (0.0, 4.0), (0.0, 1.0)]


def fit_noise(linearised, y, weight=None, *, distance=True, seed=0):
    """Fit noise scales and temperature to labels on the linearised path.

    The scales have a weak prior around 0.1, and 0 for `distance`; for the temperature see
    `fit_temperature`.

    Parameters
    ----------
    linearised : LinearisedPath
        Of the held-out rows.
    y : Tensor of shape (n,)
        Class indices.
    weight : Tensor of shape (n,), default=None
    distance : bool, default=True
        Whether the noise may grow with the distance to the training data.
    seed : int, default=0
        Of `moment_draws`.

    Returns
    -------
    calibration : Calibration
        For "moments". All scales are zero if noise does not pay for its two or three parameters
        by Akaike's criterion.

    Warns
    -----
    ConvergenceWarning
        If the optimiser does not converge.
    """
    z = moment_draws(linearised.logits.shape[1], seed)
    t_mean, nll_mean = fit_temperature(linearised.logits[None], y, weight)

    n_effective = effective_size(y, weight)
    centre, precision = torch.tensor(_PRIOR, dtype=torch.float64).T

    def nll(theta):
        scales = (theta[0].exp(), theta[1].exp(), theta[2])
        return path_nll(linearised.sample(scales, z), y, theta[3].exp(), weight)

    def loss_and_gradient(theta):
        theta = torch.tensor(theta, requires_grad=True)
        prior = (precision * (theta - centre).square()).sum() / 2
        loss = nll(theta) + prior / n_effective
        (gradient,) = torch.autograd.grad(loss, theta)
        return float(loss.detach()), gradient.numpy()

    bounds = [*_BOUNDS[:2], _BOUNDS[2] if distance else (0, 0), _BOUNDS[3]]
    results = []
    for shared, token, exponent in _STARTS:
        start = [np.log(shared), np.log(token), exponent * distance, np.log(t_mean)]
        results.append(
            minimize(loss_and_gradient, start, jac=True, bounds=bounds, method="L-BFGS-B")
        )
    best = min(results, key=lambda r: r.fun)
    with torch.no_grad():
        nll_noise = float(nll(torch.as_tensor(best.x)))
    n_scales = 3 if distance else 2
    if n_effective * (nll_mean - nll_noise) <= n_scales:
        return Calibration(NoiseScales(), t_mean, nll_mean)
    if not best.success:
        warnings.warn(
            f"The fit of the noise scales did not converge: {best.message} The best scales found "
            "are used. Give more held-out rows, or use inference='mean'.",
            ConvergenceWarning,
            stacklevel=2,
        )
    shared, token, exponent, log_t = map(float, best.x)
    scales = NoiseScales(float(np.exp(shared)), float(np.exp(token)), exponent)
    return Calibration(scales, float(np.exp(log_t)), nll_noise)


def calibrate(path, backbone, held_out, *, noise=None, distance=True, seed=0, device="cpu"):
    """Fit the noise scales and the temperatures of a path.

    Parameters
    ----------
    path : GaussianPath
        Its covariance's scales are not used.
    backbone : Backbone
    held_out : LabelledInputs
        Rows that nothing was trained on.
    noise : PathNoise, default=None
        Draws of the paths for "sampling". The linearised path overrates the noise that real
        paths need, so its scales are then multiplied by the best of `SHRINKAGE`.
    distance : bool, default=True
        Whether the noise may grow with the distance to the training data.
    seed : int, default=0
    device : str, default="cpu"

    Returns
    -------
    calibrations : dict from {"mean", "moments", "sampling"} to Calibration
    """
    logits = logits_of(path, backbone, held_out.inputs, device=device)
    mean = Calibration(NoiseScales(), *fit_temperature(logits, held_out.y, held_out.weight))
    if len(held_out) < MIN_NOISE_ROWS:
        return {"mean": mean, "moments": mean, "sampling": mean}
    # In random order, so that the first of them are a fair sample too.
    rows = np.random.default_rng(seed).permutation(len(held_out))[:MAX_NOISE_ROWS]
    part = held_out.take(rows)
    linearised = linearise_all(path, backbone, part.inputs, device)
    moments = fit_noise(linearised, part.y, part.weight, distance=distance, seed=seed)
    if moments.scales == NoiseScales():
        return {"mean": mean, "moments": mean, "sampling": mean}
    sampling = moments
    if noise is not None:
        sampling = _fit_sampling(path, backbone, part, logits[:, rows], moments, noise, device)
        if sampling.scales == NoiseScales():
            sampling = mean
    return {"mean": replace(mean, scales=moments.scales), "moments": moments, "sampling": sampling}


def _fit_sampling(path, backbone, part, logits, moments, noise, device):
    """Try multiples of the scales of `moments`, and no noise, on a part of the rows."""
    some = np.arange(min(len(part), MAX_SAMPLED_ROWS))
    part = part.take(some)
    tried = [Calibration(NoiseScales(), *fit_temperature(logits[:, some], part.y, part.weight))]
    for factor in SHRINKAGE:
        unit = moments.scales
        scales = NoiseScales(factor * unit.shared, factor * unit.token, unit.distance)
        drawn = logits_of(path.with_scales(scales), backbone, part.inputs, noise, device)
        tried.append(Calibration(scales, *fit_temperature(drawn, part.y, part.weight)))
    return min(tried, key=lambda calibration: calibration.nll)


def linearise_all(path, backbone, inputs, device="cpu"):
    """Return the `LinearisedPath` of all rows, on the CPU."""
    parts, order = [], []
    for rows, batch in chunks(inputs, device):
        parts.append(linearise(path, backbone, batch).take(slice(len(rows))))
        order.append(rows)
    order = torch.as_tensor(np.concatenate(order))
    return LinearisedPath.concatenate(parts).take(torch.argsort(order))
