"""The cost of a method: parameters, passes, time and memory, relative to the wrapped model."""

import time
from pathlib import Path

import numpy as np

# Prediction pads its last batch, so with few samples small batches would look faster.
N_TIMED, TIMING_SECONDS = 512, 2
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _count(module):
    return sum(p.numel() for p in module.parameters())


def _wrapped_parameters(frozen):
    backbone = getattr(frozen, "backbone_", None)
    return np.nan if backbone is None else _count(backbone.module)


def _is_diffusion(classifier):
    return hasattr(classifier, "n_block_parameters_")


def parameters(classifier, frozen):
    """Return how many numbers prediction needs: parameters, and posteriors of the baselines.

    A diffusion replaces the blocks of the wrapped model and keeps its embedding and readout. If its
    calibration uses noise or distances, prediction also needs the reference states of the
    covariance and their matrix.
    """
    wrapped = _wrapped_parameters(frozen)
    own = getattr(classifier, "n_parameters_", wrapped)
    if not _is_diffusion(classifier):
        return own
    scales, kept = classifier.noise_scale_, 0
    if scales.any_noise or scales.distance > 0:
        kept = sum(buffer.numel() for buffer in classifier.covariance_.buffers())
    return wrapped - classifier.n_block_parameters_ + own + kept


def passes(classifier):
    """Return the number of forward passes through the method's network per prediction."""
    if not _is_diffusion(classifier):
        return getattr(classifier, "n_passes_", 1)
    scales = classifier.noise_scale_
    sampled = classifier.inference == "sampling" and (scales.shared or scales.token)
    return classifier.n_samples if sampled else 1


def prediction_seconds(classifier, frozen, X):
    """Return seconds per 1000 predictions, for the method and for the wrapped model.

    Both are timed alternately on the same samples, at least three times and for up to
    `TIMING_SECONDS`. The fastest run counts: other processes can only slow it down.
    """
    X = X[:N_TIMED]
    best = [np.inf, np.inf]
    begin = time.perf_counter()
    for repeat in range(10):
        if repeat >= 3 and time.perf_counter() - begin > TIMING_SECONDS:
            break
        for i, predictor in enumerate((classifier, frozen)):
            start = time.perf_counter()
            predictor.predict_proba(X)
            best[i] = min(best[i], time.perf_counter() - start)
    return [seconds * 1000 / len(X) for seconds in best]


class Meter:
    """Seconds and peak memory of a ``with`` block.

    ``mib`` is the peak memory added on the GPU, if there is one. Else it is that of the resident
    memory, which only Linux can reset for every block, and nan on other systems.
    """

    def __enter__(self):
        self._cuda = _cuda()
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
        self._known = bool(self._cuda) or _forget_peak()
        self._before = self._memory("VmRSS")
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error):
        self.seconds = time.perf_counter() - self._start
        self.mib = self._memory("VmHWM") - self._before

    def _memory(self, field):
        if self._cuda:
            now = field == "VmRSS"
            used = self._cuda.memory_allocated() if now else self._cuda.max_memory_allocated()
            return used / 2**20
        if not self._known:
            return np.nan
        line = next(s for s in _STATUS.read_text().splitlines() if s.startswith(field))
        return int(line.split()[1]) / 1024


def _forget_peak():
    """Reset the peak of the resident memory; return whether that is possible."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _cuda():
    """Return ``torch.cuda`` if there is a GPU."""
    import torch

    return torch.cuda if torch.cuda.is_available() else None


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
