"""Fitting noise scales and temperature to held-out labels.

Noise scales are not identified by imitating a deterministic model: only labels can set them. The
path is linearised around its mean, where the covariance of the logits is a known function of the
scales; its negative log-likelihood is cheap and smooth, and is minimised in float64. How both grow
away from the training data is fitted to perturbed copies of the samples too, with a small weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sklearn_diffuq._calibration.calibration import Calibration
from sklearn_diffuq._calibration.temperature import effective_size, fit_temperature, path_nll
from sklearn_diffuq._path.covariance import NO_NOISE, NoiseScales
from sklearn_diffuq._propagation.linearised import LinearisedPath, moment_draws
from sklearn_diffuq._propagation.margin_table import MomentTable
from sklearn_diffuq._warnings import warn_user
from sklearn_diffuq.metrics._temperature import LOG_TEMPERATURE_BOUNDS

PERTURBED_WEIGHTS = (0.3, 0.1, 0.03, 0.01, 0.0)  # of the perturbed copies' loss, to be tried
TOLERATED_LOSS = 1.0  # nats in total that the clean samples may lose to the perturbed copies
NOISE_GAIN = 2.0  # nats in total that noise has to gain: its two parameters, by Akaike's criterion
STARTS = ((0.3, 0.03), (0.03, 0.3))  # of the shared and the token scale


@dataclass(frozen=True)
class LabelledLaw:
    """Linearised samples with their labels.

    Attributes
    ----------
    law : LinearisedPath of n samples
    y : Tensor of shape (n,)
        Class indices.
    weight : Tensor of shape (n,) or None
    """

    law: LinearisedPath
    y: Tensor
    weight: Tensor | None = None


Value = Tensor | float


@dataclass(frozen=True)
class NoiseParameters:
    """What is fitted, on the scale on which it is fitted.

    Attributes
    ----------
    log_temperature : float or Tensor of shape ()
    distance : float or Tensor of shape ()
        Exponent of noise and temperature.
    log_shared, log_token : float or Tensor of shape (), or None
        Logarithms of the scales of the noise; None where there is none.
    """

    log_temperature: Value
    distance: Value = 0.0
    log_shared: Value | None = None
    log_token: Value | None = None

    def pack(self, names: Sequence[str]) -> np.ndarray:
        """Return some of the parameters as an array."""
        return np.array([float(getattr(self, name)) for name in names])

    @classmethod
    def unpack(cls, names: Sequence[str], values: Tensor) -> "NoiseParameters":
        """Return the parameters that `pack` has put into an array."""
        return cls(**dict(zip(names, values, strict=True)))

    @property
    def scales(self) -> NoiseScales:
        """The noise scales they stand for."""
        if self.log_shared is None or self.log_token is None:
            return NoiseScales(distance=float(self.distance))
        shared, token = float(np.exp(float(self.log_shared))), float(np.exp(float(self.log_token)))
        return NoiseScales(shared, token, float(self.distance))


WITHOUT_NOISE = ("distance", "log_temperature")
BOUNDS = {
    "log_shared": (np.log(1e-3), np.log(3)),
    "log_token": (np.log(1e-3), np.log(3)),
    "distance": (0.0, 2.0),
    "log_temperature": LOG_TEMPERATURE_BOUNDS,
}
# A weak normal prior, which counts where held-out samples are few: centre and precision.
PRIOR = {
    "log_shared": (np.log(0.1), 0.5),
    "log_token": (np.log(0.1), 0.5),
    "distance": (0.0, 4.0),
    "log_temperature": (0.0, 1.0),
}


@dataclass(frozen=True)
class Fit:
    """Parameters, their loss on the clean samples, and what the optimiser said."""

    parameters: NoiseParameters
    nll: float
    result: OptimizeResult

    def check_converged(self) -> "Fit":
        """Warn if the optimiser did not converge."""
        if not self.result.success:
            warn_user(
                f"The fit of the noise scales did not converge: {self.result.message} The best "
                "scales found are used. Give more held-out rows, or use inference='mean'.",
                ConvergenceWarning,
            )
        return self


class NoiseLoss:
    """Penalised loss of `NoiseParameters` (eq. 5.5).

    Parameters
    ----------
    clean : LabelledLaw
    perturbed : LabelledLaw or None
    seed : int
        Of `moment_draws`.
    """

    def __init__(self, clean: LabelledLaw, perturbed: LabelledLaw | None, seed: int) -> None:
        self.clean, self.perturbed = clean, perturbed
        self.z = moment_draws(clean.law.logits.shape[1], seed)
        self.n_effective = effective_size(clean.y, clean.weight)

    def nll(self, parameters: NoiseParameters, sample: LabelledLaw) -> Tensor:
        """Return the mean negative log-likelihood, in nats."""
        law, p = sample.law, parameters
        logits = law.logits[None]
        if p.log_shared is not None and p.log_token is not None:
            shared, token = (torch.exp(torch.as_tensor(x)) for x in (p.log_shared, p.log_token))
            logits = law.sample(shared, token, p.distance, self.z)
        temperature = torch.exp(p.log_temperature + p.distance * law.distance)[:, None]
        return path_nll(logits, sample.y, temperature, sample.weight)

    def minimise(
        self, names: Sequence[str], start: NoiseParameters, perturbed_weight: float
    ) -> Fit:
        """Minimise over the named parameters; the others stay absent or zero."""
        centre, precision = torch.tensor([PRIOR[name] for name in names], dtype=torch.float64).T

        @torch.enable_grad()  # the caller may have switched gradients off
        def loss_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
            theta = torch.tensor(values, requires_grad=True)
            parameters = NoiseParameters.unpack(names, theta)
            loss = self.nll(parameters, self.clean)
            if self.perturbed is not None and perturbed_weight:
                loss = loss + perturbed_weight * self.nll(parameters, self.perturbed)
            prior = (precision * (theta - centre).square()).sum() / 2
            loss = loss + prior / self.n_effective
            (gradient,) = torch.autograd.grad(loss, theta)
            return float(loss.detach()), gradient.numpy()

        result = minimize(
            loss_and_gradient,
            start.pack(names),
            jac=True,
            bounds=[BOUNDS[name] for name in names],
            method="L-BFGS-B",
        )
        parameters = NoiseParameters.unpack(names, torch.as_tensor(result.x))
        with torch.no_grad():
            return Fit(parameters, float(self.nll(parameters, self.clean)), result)


def fit_noise(
    clean: LabelledLaw,
    perturbed: LabelledLaw | None = None,
    *,
    distance: bool = True,
    seed: int = 0,
) -> Calibration:
    """Fit noise scales and temperature to labels on the linearised path.

    The loss is that of the samples plus a multiple of that of their perturbed copies; see
    `fit_distance`. The scales have a weak prior around 0.1, and 0 for `distance`; for the
    temperature see `fit_temperature`.

    Parameters
    ----------
    clean : LabelledLaw
        The held-out samples.
    perturbed : LabelledLaw or None, default=None
        Perturbed copies of some of them.
    distance : bool, default=True
        Whether noise and temperature may grow with the distance to the training data.
    seed : int, default=0
        Of `moment_draws`.

    Returns
    -------
    calibration : Calibration
        For "moments". The scales of the noise are zero if it does not gain `NOISE_GAIN` (eq. 5.8).

    Warns
    -----
    ConvergenceWarning
        If the optimiser does not converge.
    """
    loss = NoiseLoss(clean, perturbed, seed)
    temperature, nll = fit_temperature(clean.law.logits[None], clean.y, clean.weight)
    chosen, weight = Calibration(NO_NOISE, temperature, nll), None
    if distance:
        chosen, weight = fit_distance(loss, chosen)
    fit = fit_scales(loss, chosen.temperature, weight)
    if loss.n_effective * (chosen.nll - fit.nll) <= NOISE_GAIN:
        return chosen
    return _calibration(fit.check_converged(), clean.law)


def fit_distance(loss: NoiseLoss, constant: Calibration) -> tuple[Calibration, float | None]:
    """Fit how the temperature grows with the distance, without noise.

    Returns
    -------
    calibration : Calibration
        `constant`, the one with a constant temperature, where no weight is tolerated.
    weight : float or None
        Of the perturbed copies: the largest of `PERTURBED_WEIGHTS` with which the clean samples
        lose no more than `TOLERATED_LOSS` to a constant temperature (eq. 5.7). None if there is
        none.
    """
    start = NoiseParameters(np.log(constant.temperature), 0.1)
    for weight in PERTURBED_WEIGHTS:
        fit = loss.minimise(WITHOUT_NOISE, start, weight)
        if loss.n_effective * (fit.nll - constant.nll) <= TOLERATED_LOSS:
            return _calibration(fit.check_converged(), loss.clean.law), weight
    return constant, None


def fit_scales(loss: NoiseLoss, temperature: float, weight: float | None) -> Fit:
    """Fit noise scales and temperature, and the exponent unless `weight` is None."""
    names = ["log_shared", "log_token", *WITHOUT_NOISE]
    if weight is None:
        names.remove("distance")
    log_t, distance = np.log(temperature), 0.0 if weight is None else 0.1
    starts = [NoiseParameters(log_t, distance, np.log(a), np.log(d)) for a, d in STARTS]
    fits = [loss.minimise(names, start, weight or 0.0) for start in starts]
    return min(fits, key=lambda fit: fit.result.fun)


def _calibration(fit: Fit, law: LinearisedPath) -> Calibration:
    scales = fit.parameters.scales
    table = MomentTable.of(law, scales) if scales.any_noise else None
    temperature = float(np.exp(float(fit.parameters.log_temperature)))
    return Calibration(scales, temperature, fit.nll, table)
