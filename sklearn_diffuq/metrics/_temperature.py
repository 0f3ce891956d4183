"""Temperature scaling: one temperature, fitted by a one-dimensional search."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

# Bounds on the logarithm of a temperature: 0.01 to 100.
LOG_TEMPERATURE_BOUNDS = (np.log(1e-2), np.log(1e2))


def best_temperature(loss):
    """Return the temperature that minimises a loss.

    The search assumes one minimum, which holds for every loss that is convex in 1 / T. A minimum
    outside of `LOG_TEMPERATURE_BOUNDS` gives the nearest bound, to within 1e-5.

    Parameters
    ----------
    loss : callable
        Function of the logarithm of the temperature, a float, that returns a float.

    Returns
    -------
    float
        The temperature, in [0.01, 100]; its logarithm is accurate to about 1e-6.

    Examples
    --------
    >>> from sklearn_diffuq.metrics._temperature import best_temperature
    >>> round(best_temperature(lambda log_t: (log_t - 1) ** 2), 4)
    2.7183
    """
    found = minimize_scalar(
        loss, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def fit_temperature(log_proba, codes):
    """Return the temperature T for which softmax(log_proba / T) has the least mean log loss.

    Parameters
    ----------
    log_proba : ndarray of shape (n_samples, n_classes)
        Finite logits or log-probabilities.
    codes : ndarray of int of shape (n_samples,)
        Column of the true class.

    Returns
    -------
    float
        The temperature, in [0.01, 100]; above 1 where the predictions are over-confident.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_diffuq.metrics._temperature import fit_temperature
    >>> log_proba = np.log([[0.9, 0.1]] * 4)
    >>> round(fit_temperature(log_proba, np.array([0, 0, 0, 1])), 3)  # log(9) / log(3)
    2.0
    """
    samples = np.arange(len(codes))

    def mean_log_loss(log_temperature):
        scaled = log_softmax(log_proba * np.exp(-log_temperature), axis=1)
        return -scaled[samples, codes].mean()

    return best_temperature(mean_log_loss)
