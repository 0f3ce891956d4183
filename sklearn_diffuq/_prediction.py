"""Stage 5: from a calibrated path to numbers per row, in batches that a row cannot notice."""

import numpy as np
import torch

from sklearn_diffuq._fitting import backbone_device
from sklearn_diffuq._moments import moment_draws
from sklearn_diffuq._propagation import (
    PathNoise,
    chunks,
    mean_distance,
    path_distances,
    path_probabilities,
    propagate,
)


def path_predictions(path, backbone, inputs, calibration, reduce, *, inference, n_samples, seed):
    """Propagate rows and reduce what comes out, chunk by chunk.

    Parameters
    ----------
    path : GaussianPath
    backbone : Backbone
    inputs : EncodedInputs of length n
    calibration : Calibration
        Noise scales and temperature of `inference`.
    reduce : callable
        ``reduce(proba, variance)`` takes the class probabilities of the paths, (K, m, n_classes),
        and the variance of each step, (m, n_steps), and returns a list of arrays of length m.
    inference : {"sampling", "moments", "mean"}
    n_samples : int
        Number of paths of "sampling".
    seed : int

    Returns
    -------
    results : list of ndarray of length n
        What `reduce` returned, of all rows.
    """
    device = backbone_device(backbone)
    path = path.with_scales(calibration.scales).to(device)
    draws, noise = None, None
    if calibration.has_noise and inference == "moments":
        draws = moment_draws(backbone.n_outputs, seed)
    elif calibration.has_noise and inference == "sampling":
        noise = PathNoise.of(path, n_samples, seed)
    results = None
    with backbone.frozen(), torch.no_grad():
        for rows, batch in chunks(inputs, device, 1 if noise is None else n_samples):
            end = propagate(path, backbone, batch, noise).take(len(rows))
            logits = end.outcome
            if draws is not None:
                growth = path.covariance.growth(end.distance)
                logits = calibration.table.sample(logits[0], growth, draws)
            proba = path_probabilities(logits, calibration.temperature_at(end.distance)).numpy()
            values = reduce(proba / proba.sum(2, keepdims=True), end.variance.numpy())
            if results is None:
                results = [np.empty((len(inputs), *v.shape[1:])) for v in values]
            for result, value in zip(results, values, strict=True):
                result[rows] = value
    return results


def familiarity(path, backbone, inputs):
    """Return minus the `mean_distance` of each row's states to the training data, (n,)."""
    device = backbone_device(backbone)
    scores = np.empty(len(inputs))
    with backbone.frozen():
        for rows, batch in chunks(inputs, device):
            distances = path_distances(path.to(device), backbone, batch)
            scores[rows] = -mean_distance(distances)[: len(rows)].cpu().numpy()
    return scores
