"""The log likelihood of averaged probabilities, and the temperature that maximises it."""

import numpy as np
import torch
from torch import Tensor

from sklearn_diffuq.metrics._temperature import best_temperature


def path_probabilities(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Return the class probabilities of every path (eq. 5.3), float64, shape (K, n, n_classes).

    `temperature` is one number, or one of each row, (n, 1).
    """
    return torch.softmax(logits.double() / temperature, -1)


def path_nll(
    logits: Tensor, y: Tensor, temperature: float | Tensor, weight: Tensor | None = None
) -> Tensor:
    """Return the negative log-likelihood of the averaged probabilities of K paths (eq. 5.4).

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
    loss: Tensor = np.log(len(logits)) - torch.logsumexp(log_p, 0)
    return loss.mean() if weight is None else (loss * weight).sum() / weight.sum()


def all_paths_nll(
    logits: Tensor, y: Tensor, temperature: float | Tensor, weight: Tensor | None = None
) -> Tensor:
    """Return `path_nll` of infinitely many paths, estimated from K antithetic ones (eq. 5.9).

    K paths overrate the loss by about c / K, which speaks against noise wherever few are drawn.
    Twice their loss minus the mean loss of their halves is free of that (the jackknife).

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
    losses = [path_nll(half, y, temperature, weight) for half in halves]
    return 2 * path_nll(logits, y, temperature, weight) - torch.stack(losses).mean()


def fit_temperature(logits: Tensor, y: Tensor, weight: Tensor | None = None) -> tuple[float, float]:
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
    >>> from sklearn_diffuq._calibration.temperature import fit_temperature
    >>> y = torch.tensor([0, 0, 0, 1] * 1000)  # right three times out of four
    >>> logits = torch.tensor([[[5.0, 0.0]]]).expand(1, 4000, 2)
    >>> temperature, nll = fit_temperature(logits, y)
    >>> round(5 / temperature, 2)  # log(3)
    1.1
    """
    n = effective_size(y, weight)

    def loss(log_t: float) -> float:
        return float(path_nll(logits, y, np.exp(log_t), weight)) + 0.5 * log_t**2 / n

    temperature = best_temperature(loss)
    return temperature, float(path_nll(logits, y, temperature, weight))


def effective_size(y: Tensor, weight: Tensor | None = None) -> float:
    """Return the number of rows, or Kish's effective number of weighted rows (eq. 5.6)."""
    return len(y) if weight is None else float(weight.sum() ** 2 / weight.square().sum())
