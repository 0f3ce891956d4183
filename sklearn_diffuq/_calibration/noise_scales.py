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
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning

from sklearn_diffuq._calibration.temperature import (
    LOG_TEMPERATURE_BOUNDS,
    effective_size,
    fit_temperature,
    path_nll,
)
from sklearn_diffuq._path.covariance import NoiseScales
from sklearn_diffuq._propagation.linearised import moment_draws
from sklearn_diffuq._propagation.margin_table import MomentTable

PERTURBED_WEIGHTS = (0.3, 0.1, 0.03, 0.01, 0.0)  # of the perturbed copies' loss, to be tried


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
