"""The cost of a method: parameters, passes, time and memory, relative to the wrapped model."""

from functools import partial

import numpy as np
from timing import best_seconds

# Prediction pads its last batch, so with few samples small batches would look faster.
N_TIMED = 512


def _count(module):
    return sum(p.numel() for p in module.parameters())


def _wrapped_parameters(frozen):
    backbone = getattr(frozen, "backbone_", None)
    return np.nan if backbone is None else _count(backbone.module)


def _is_diffusion(classifier):
    return hasattr(classifier, "n_block_parameters_")


def parameters(classifier, frozen):
    """Return how many numbers prediction needs: parameters, and posteriors of the baselines.

    A diffusion replaces the blocks of the wrapped model and keeps its embedding and readout.
    """
    wrapped = _wrapped_parameters(frozen)
    own = getattr(classifier, "n_parameters_", wrapped)
    if not _is_diffusion(classifier):
        return own
    return wrapped - classifier.n_block_parameters_ + own


def passes(classifier):
    """Return the number of forward passes through the method's network per prediction."""
    if not _is_diffusion(classifier):
        return getattr(classifier, "n_passes_", 1)
    scales = classifier.noise_scale_
    sampled = classifier.inference == "sampling" and (scales.shared or scales.token)
    return classifier.n_samples if sampled else 1


def prediction_seconds(classifier, frozen, X):
    """Return seconds per 1000 predictions, for the method and for the wrapped model.

    Both are timed alternately on the same samples; see `best_seconds`.
    """
    X = X[:N_TIMED]
    timed = {"method": classifier, "wrapped": frozen}
    best = best_seconds({name: partial(c.predict_proba, X) for name, c in timed.items()})
    return [seconds * 1000 / len(X) for seconds in best.values()]


def costs(classifier, frozen, X, meter):
    """Return cost -> value for a fitted classifier; `meter` has measured its fit."""
    seconds, wrapped_seconds = prediction_seconds(classifier, frozen, X)
    n_parameters = parameters(classifier, frozen)
    return {
        "parameters": n_parameters,
        "relative parameters": n_parameters / _wrapped_parameters(frozen),
        "passes": passes(classifier),
        "seconds per 1000": seconds,
        "relative seconds": seconds / wrapped_seconds,
        "fit seconds": meter.seconds,
        "fit peak MiB": meter.mib,
    }
