"""Stage 5: from a calibrated path to numbers per row, in batches that a row cannot notice."""

from dataclasses import replace

import numpy as np
import torch

from sklearn_diffuq._backbones.backbone import backbone_device
from sklearn_diffuq._inputs.batching import chunks
from sklearn_diffuq._propagation.linearised import moment_draws
from sklearn_diffuq._propagation.noise import PathNoise
from sklearn_diffuq._propagation.propagate import path_distance, path_probabilities, propagate


def path_predictions(
    path, backbone, inputs, calibration, reduce, *, inference, n_samples, seed, variance=False
):
    """Propagate rows and reduce what comes out, chunk by chunk.

    Parameters
    ----------
    path : GaussianPath
    backbone : Backbone
    inputs : EncodedInputs of length n
    calibration : Calibration
        Noise scales and temperature of `inference`.
    reduce : callable
        ``reduce(proba)`` takes the class probabilities of the paths, (K, m, n_classes), and returns
        a list of arrays of length m.
    inference : {"sampling", "moments", "mean"}
    n_samples : int
        Number of paths of "sampling".
    seed : int
    variance : bool, default=False
        Whether to append the variance of each step, (n, n_steps), to the results.

    Returns
    -------
    results : list of ndarray of length n
        What `reduce` returned, of all rows.
    """
    device = backbone_device(backbone)
    scales, draws, noise = calibration.scales, None, None
    if calibration.has_noise and inference == "moments":
        draws = moment_draws(backbone.n_outputs, seed)
    elif calibration.has_noise and inference == "sampling":
        noise = PathNoise.of(path, n_samples, seed)
    if noise is None and not variance:
        # Noise on the way is not seen: do not measure how far the embedding is away for it.
        scales = replace(scales, shared=0.0, token=0.0)
    path = path.with_scales(scales).to(device)
    results = None
    with backbone.frozen(), torch.no_grad():
        for rows, batch in chunks(inputs, device, 1 if noise is None else n_samples):
            end = propagate(path, backbone, batch, noise).take(len(rows))
            logits = end.outcome
            if draws is not None:
                growth = path.covariance.growth(end.distance)
                logits = calibration.table.sample(logits[0], growth, draws)
            proba = path_probabilities(logits, calibration.temperature_at(end.distance)).numpy()
            values = reduce(proba / proba.sum(2, keepdims=True))
            if variance:
                values.append(end.variance.numpy())
            if results is None:
                results = [np.empty((len(inputs), *v.shape[1:])) for v in values]
            for result, value in zip(results, values, strict=True):
                result[rows] = value
    return results


def familiarity(path, backbone, inputs):
    """Return minus the mean distance of each row's judged states to the training data, (n,)."""
    device = backbone_device(backbone)
    scores = np.empty(len(inputs))
    with backbone.frozen():
        for rows, batch in chunks(inputs, device):
            distance = path_distance(path.to(device), backbone, batch)
            scores[rows] = -distance[: len(rows)].cpu().numpy()
    return scores
