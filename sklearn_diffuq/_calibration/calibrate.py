"""Calibrating a path on held-out samples, for every kind of inference."""

import numpy as np
import torch

from sklearn_diffuq._calibration.noise_scales import Calibration, fit_noise
from sklearn_diffuq._calibration.temperature import all_paths_nll, fit_temperature
from sklearn_diffuq._inputs.rows import _random_order
from sklearn_diffuq._path.covariance import NoiseScales
from sklearn_diffuq._path.perturbation import Perturbation
from sklearn_diffuq._propagation.linearised import linearise_all
from sklearn_diffuq._propagation.noise import PathNoise
from sklearn_diffuq._propagation.propagate import logits_of, propagate_all

MIN_NOISE_ROWS = 30  # fewer held-out rows fit a temperature only
MAX_NOISE_ROWS = 2048  # more say little that is new about three scales
MAX_PERTURBED_ROWS = 512
N_SAMPLED = 8  # paths that are really drawn for each row
SHRINKAGE = (0.25, 0.5, 1.0)


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
