"""Stage 5: fit temperature and noise scales on held-out rows.

Noise scales are not identified by imitating a deterministic model: only labels tell. The path is
linearised around its mean, where the covariance of the logits is a known function of the scales;
its negative log-likelihood is cheap and smooth, and is minimised in float64. How all of it grows
away from the training data is told by perturbed copies of the rows, with a small weight. Then real
paths are drawn with a few multiples of those scales, and the best one is taken for sampling.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from sklearn.exceptions import ConvergenceWarning

from sklearn_diffuq._covariance import NoiseScales
from sklearn_diffuq._moments import MomentTable, linearise_all, moment_draws
from sklearn_diffuq._perturbation import Perturbation
from sklearn_diffuq._propagation import PathNoise, logits_of, propagate_all

LOG_TEMPERATURE_BOUNDS = (np.log(1e-2), np.log(1e2))
MIN_NOISE_ROWS = 30  # fewer held-out rows fit a temperature only
MAX_NOISE_ROWS = 2048  # more say little that is new about three scales
MAX_PERTURBED_ROWS = 512
N_SAMPLED = 8  # paths that are really drawn for each row
PERTURBED_WEIGHTS = (0.3, 0.1, 0.03, 0.01, 0.0)  # of the perturbed copies' loss, to be tried
SHRINKAGE = (0.25, 0.5, 1.0)


def path_nll(logits, y, temperature, weight=None):
    """Return the negative log-likelihood of the averaged probabilities of K paths.

    Parameters
    ----------
    logits : Tensor of shape (K, n, n_classes)
    y : Tensor of shape (n,)
        Class indices.
    temperature : float or Tensor
        One number, or one of each row, (n, 1).
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


def all_paths_nll(logits, y, temperature, weight=None):
    """Return `path_nll` of infinitely many paths, estimated from K antithetic ones.

    K paths overrate the loss by about c / K, which speaks against noise wherever few are drawn.
    Twice their loss less the mean loss of their halves is free of that (the jackknife).

    Parameters
    ----------
    logits : Tensor of shape (K, n, n_classes)
        Path k and path k + K / 2 have opposite draws; K is a multiple of four.
    y, temperature, weight
        As for `path_nll`.

    Returns
    -------
    nll : Tensor
        Weighted mean over rows, in nats. Its own error of order 1 / K^2 remains.
    """
    halves = logits.unflatten(0, (2, 2, -1)).transpose(0, 1).flatten(1, 2)  # pairs stay together
    mean = sum(path_nll(half, y, temperature, weight) for half in halves) / 2
    return 2 * path_nll(logits, y, temperature, weight) - mean


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
class Calibration:
    """What held-out rows say for one kind of inference.

    Attributes
    ----------
    scales : NoiseScales
        All zero where noise does not help.
    temperature : float
        Where the distance to the training data is zero.
    nll : float
        Held-out negative log-likelihood.
    table : MomentTable or None
        For "moments" with noise.
    """

    scales: NoiseScales
    temperature: float
    nll: float
    table: MomentTable | None = None

    @property
    def has_noise(self):
        """Whether the path is anything but its mean."""
        return self.scales.any_noise

    def temperature_at(self, distance):
        """Return the temperature at standardised distances (n,), shape (n, 1), float64."""
        return (self.temperature * torch.exp(self.scales.distance * distance.double()))[:, None]


# Bounds of log(shared), log(token), distance, log(temperature).
_BOUNDS = [(np.log(1e-3), np.log(3)), (np.log(1e-3), np.log(3)), (0.0, 2.0), LOG_TEMPERATURE_BOUNDS]
_STARTS = [(0.3, 0.03), (0.03, 0.3)]
# A weak normal prior, which counts where held-out rows are few: centres and precisions.
_PRIOR = [(np.log(0.1), 0.5), (np.log(0.1), 0.5), (0.0, 4.0), (0.0, 1.0)]


class _NoiseLoss:
    """Penalised loss of (log shared, log token, distance, log temperature).

    Parameters
    ----------
    clean : tuple of LinearisedPath, labels (n,), weights (n,) or None
    perturbed : the same, or None
    seed : int
    """

    def __init__(self, clean, perturbed, seed):
        self.clean, self.perturbed = clean, perturbed
        self.z = moment_draws(clean[0].logits.shape[1], seed)
        self.n_effective = effective_size(*clean[1:])
        self.centre, self.precision = torch.tensor(_PRIOR, dtype=torch.float64).T

    def nll(self, theta, part, noise):
        law, y, weight = part
        shared, token, distance, log_t = theta
        logits = law.logits[None]
        if noise:
            logits = law.sample(shared.exp(), token.exp(), distance, self.z)
        temperature = torch.exp(log_t + distance * law.distance)[:, None]
        return path_nll(logits, y, temperature, weight)

    def minimise(self, noise, perturbed_weight, log_t):
        """Return the best parameters, their loss on the clean rows, and the optimiser's result.

        `perturbed_weight` is None where nothing may depend on the distance.
        """
        distance = perturbed_weight is not None
        bounds = list(_BOUNDS)
        if not noise:
            bounds[:2] = [(0.0, 0.0)] * 2
        if not distance:
            bounds[2] = (0.0, 0.0)

        @torch.enable_grad()  # the caller may have switched gradients off
        def loss_and_gradient(theta):
            theta = torch.tensor(theta, requires_grad=True)
            loss = self.nll(theta, self.clean, noise)
            if self.perturbed is not None and perturbed_weight:
                loss = loss + perturbed_weight * self.nll(theta, self.perturbed, noise)
            prior = (self.precision * (theta - self.centre).square()).sum() / 2
            loss = loss + prior / self.n_effective
            (gradient,) = torch.autograd.grad(loss, theta)
            return float(loss.detach()), gradient.numpy()

        starts = [(np.log(a), np.log(d)) for a, d in _STARTS] if noise else [(0.0, 0.0)]
        results = [
            minimize(
                loss_and_gradient,
                [*start, 0.1 * distance, log_t],
                jac=True,
                bounds=bounds,
                method="L-BFGS-B",
            )
            for start in starts
        ]
        best = min(results, key=lambda r: r.fun)
        with torch.no_grad():
            return best.x, float(self.nll(torch.as_tensor(best.x), self.clean, noise)), best


def fit_noise(linearised, y, weight=None, *, perturbed=None, distance=True, seed=0):
    """Fit noise scales and temperature to labels on the linearised path.

    The loss is that of the rows plus a multiple of that of their perturbed copies. The multiple is
    the largest of `PERTURBED_WEIGHTS` with which the rows themselves lose no more than one nat in
    total to a constant temperature. The scales have a weak prior around 0.1, and 0 for `distance`;
    for the temperature see `fit_temperature`.

    Parameters
    ----------
    linearised : LinearisedPath
        Of the held-out rows.
    y : Tensor of shape (n,)
        Class indices.
    weight : Tensor of shape (n,), default=None
    perturbed : tuple of LinearisedPath, Tensor and Tensor or None, default=None
        Perturbed copies of some rows, their class indices and their weights.
    distance : bool, default=True
        Whether noise and temperature may grow with the distance to the training data.
    seed : int, default=0
        Of `moment_draws`.

    Returns
    -------
    calibration : Calibration
        For "moments". The scales of the noise are zero if it does not pay for its two parameters
        by Akaike's criterion.

    Warns
    -----
    ConvergenceWarning
        If the optimiser does not converge.
    """
    loss = _NoiseLoss((linearised, y, weight), perturbed, seed)
    t, nll = fit_temperature(linearised.logits[None], y, weight)
    chosen, perturbed_weight = Calibration(NoiseScales(), t, nll), None
    for tried in PERTURBED_WEIGHTS if distance else ():
        theta, nll_distance, result = loss.minimise(False, tried, np.log(t))
        if loss.n_effective * (nll_distance - nll) <= 1:
            _check_converged(result)
            scales, perturbed_weight = NoiseScales(0.0, 0.0, float(theta[2])), tried
            chosen = Calibration(scales, float(np.exp(theta[3])), nll_distance)
            break
    theta, nll_noise, result = loss.minimise(True, perturbed_weight, np.log(chosen.temperature))
    if loss.n_effective * (chosen.nll - nll_noise) > 2:
        _check_converged(result)
        shared, token, exponent, log_t = map(float, theta)
        scales = NoiseScales(float(np.exp(shared)), float(np.exp(token)), exponent)
        table = MomentTable.of(linearised, scales)
        chosen = Calibration(scales, float(np.exp(log_t)), nll_noise, table)
    return chosen


def _check_converged(result):
    if not result.success:
        warnings.warn(
            f"The fit of the noise scales did not converge: {result.message} The best scales found "
            "are used. Give more held-out rows, or use inference='mean'.",
            ConvergenceWarning,
            stacklevel=3,
        )


def calibrate(path, backbone, held_out, *, distance=True, seed=0, device="cpu"):
    """Fit the noise scales and the temperatures of a path for every kind of inference.

    Parameters
    ----------
    path : GaussianPath
        Its covariance's scales are not used.
    backbone : Backbone
    held_out : LabelledInputs
        Rows that nothing was trained on.
    distance : bool, default=True
        Whether noise and temperature may grow with the distance to the training data.
    seed : int, default=0
    device : str, default="cpu"

    Returns
    -------
    calibrations : dict from {"mean", "moments", "sampling"} to Calibration
    """
    mean = calibrate_mean(path, backbone, held_out, device)
    moments = calibrate_moments(path, backbone, held_out, distance, seed, device)
    sampling = moments
    if moments.has_noise:
        sampling = _calibrate_sampling(path, backbone, held_out, moments.scales, seed, device)
    return {"mean": mean, "moments": moments, "sampling": sampling}


def calibrate_mean(path, backbone, held_out, device="cpu"):
    """Return the `Calibration` of a path's mean: one temperature, and no noise."""
    logits = logits_of(path.with_scales(NoiseScales()), backbone, held_out.inputs, device=device)
    return Calibration(NoiseScales(), *fit_temperature(logits, held_out.y, held_out.weight))


def calibrate_moments(path, backbone, held_out, distance=True, seed=0, device="cpu"):
    """Return the `Calibration` of the linearised path; see `calibrate`."""
    if len(held_out) < MIN_NOISE_ROWS:
        return calibrate_mean(path, backbone, held_out, device)
    part = _random_order(held_out, MAX_NOISE_ROWS, seed)
    linearised = linearise_all(path, backbone, part.inputs, device)
    perturbed = None
    if distance:
        some = part.take(np.arange(min(len(part), MAX_PERTURBED_ROWS)))
        perturb = Perturbation(torch.Generator().manual_seed(seed))
        copies = linearise_all(path, backbone, some.inputs, device, perturb)
        perturbed = copies, some.y, some.weight
    return fit_noise(
        linearised, part.y, part.weight, perturbed=perturbed, distance=distance, seed=seed
    )


def _calibrate_sampling(path, backbone, held_out, unit, seed, device):
    """Return the best of the multiples `SHRINKAGE` of the scales `unit`, and of no noise.

    The linearised path overrates the noise that real paths need, so real ones are drawn here. The
    draws differ from batch to batch, and the multiples are compared by the loss of infinitely many
    paths: the answer is about paths, and not about the few that are drawn. The temperature is the
    best one for these few; the estimate for infinitely many has no minimum that can be trusted.
    """
    part = _random_order(held_out, MAX_NOISE_ROWS, seed)
    noise = PathNoise.of(path, N_SAMPLED, seed)
    tried = []
    for factor in (0.0, *SHRINKAGE):
        scales = NoiseScales(factor * unit.shared, factor * unit.token, unit.distance)
        draws = noise if factor else None
        scaled = path.with_scales(scales)
        end = propagate_all(scaled, backbone, part.inputs, draws, device, common=False)
        logits = end.outcome / torch.exp(unit.distance * end.distance)[:, None]
        temperature, nll = fit_temperature(logits, part.y, part.weight)
        if factor:
            nll = float(all_paths_nll(logits, part.y, temperature, part.weight))
        tried.append(Calibration(scales, temperature, nll))
    return min(tried, key=lambda calibration: calibration.nll)


def _random_order(labelled, n_rows, seed):
    """Return at most `n_rows` random rows in random order: the first of them are a fair sample."""
    rows = np.random.default_rng(seed).permutation(len(labelled))[:n_rows]
    return labelled.take(rows)
