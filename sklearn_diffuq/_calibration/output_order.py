"""Checking that the outputs of the wrapped model belong to the labels.

Held-out labels tell. Where the outputs are in another order than the labels, a temperature hides
all that the model knows, and nothing fails.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from torch import Tensor

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._calibration.calibrator import Reference
from sklearn_diffuq._warnings import warn_user
from sklearn_diffuq.exceptions import CalibrationWarning
from sklearn_diffuq.metrics._temperature import LOG_TEMPERATURE_BOUNDS

MIN_ROWS = 20  # fewer held-out samples prove no order
LEVEL = 1e-4  # probability of a false alarm, where the model knows nothing of the labels
MIN_GAIN = 0.05  # accuracy that another order has to gain
BELOW_CHANCE = -5.0  # standard errors
AT_BOUND = 0.01  # relative distance to a bound of the temperature
SHOWN = 10  # labels that a message names


@dataclass(frozen=True)
class Order:
    """An order of the outputs that fits the labels better than the one that is used.

    Attributes
    ----------
    outputs : ndarray of shape (n_classes,)
        For each class, the class whose logit fits it.
    accuracy, before : float
        On the held-out samples, with this order and with the one that is used.
    """

    outputs: np.ndarray
    accuracy: float
    before: float


def better_order(logits: Tensor, y: Tensor) -> Order | None:
    """Return an order of the outputs that is clearly better than the one that is used, or None.

    The order is chosen on each half of the samples and tried on the other half, so that it does not
    profit from the many orders that there are. It has to turn significantly more predictions right
    than wrong (an exact test of signs).
    """
    found, true, n_classes = logits.argmax(1).numpy(), y.numpy(), logits.shape[1]
    if len(true) < MIN_ROWS:
        return None
    half = np.empty(len(true), dtype=np.intp)
    half[np.argsort(true, kind="stable")] = np.arange(len(true)) % 2
    n_better = n_worse = 0
    for tried in (0, 1):
        chosen = _best_outputs(found[half != tried], true[half != tried], n_classes)
        is_right = found[half == tried] == chosen[true[half == tried]]
        was_right = (found == true)[half == tried]
        n_better += int((is_right & ~was_right).sum())
        n_worse += int((was_right & ~is_right).sum())
    if binom.sf(n_better - 1, n_better + n_worse, 0.5) > LEVEL:
        return None
    outputs = _best_outputs(found, true, n_classes)
    order = Order(outputs, float((found == outputs[true]).mean()), float((found == true).mean()))
    return order if order.accuracy - order.before >= MIN_GAIN else None


def _best_outputs(found: np.ndarray, true: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the output of each class with which most samples are right; in doubt its own."""
    counts = np.zeros((n_classes, n_classes))
    np.add.at(counts, (true, found), 1.0)
    counts += np.eye(n_classes) / (n_classes + 1)  # less than one sample in total
    return np.asarray(linear_sum_assignment(counts, maximize=True)[1])


def is_below_chance(logits: Tensor, y: Tensor) -> bool:
    """Tell whether the logits of the labels are clearly lower than those of the other classes.

    Then no temperature is better than an infinite one.
    """
    lead = (logits.gather(1, y[:, None])[:, 0] - logits.mean(1)).double()
    if len(lead) < MIN_ROWS or not len(lead.unique()) > 1:
        return False
    return float(lead.mean() / lead.std() * len(lead) ** 0.5) < BELOW_CHANCE


def warn_of_doubtful_outputs(
    reference: Reference, y: Tensor, backbone: Backbone, classes: np.ndarray
) -> None:
    """Warn where held-out labels contradict the wrapped model.

    Parameters
    ----------
    reference : Reference
        Of the wrapped model.
    y : Tensor of shape (n,)
        Class indices of the held-out samples.
    backbone : Backbone
    classes : ndarray of shape (n_classes,)
        The labels.

    Warns
    -----
    CalibrationWarning
        If another order of the outputs is clearly better, if the model is worse than chance, or if
        the temperature is at a bound.
    """
    order = better_order(reference.logits, y)
    if order is not None:
        message = _message_of_order(order, backbone, classes)
    elif is_below_chance(reference.logits, y):
        message = (
            "The wrapped model gives the true labels of the held-out rows less than the mean "
            "logit: it is worse than chance, and calibration can only make it unsure "
            f"(temperature {reference.temperature:.3g}). Check that its outputs are in the order "
            "of classes_, that the held-out labels are coded as in training, and that the inputs "
            "are prepared as the model was trained; or fit a head with readout='refit'."
        )
    else:
        message = _message_of_bound(reference.temperature)
    if message:
        warn_user(message, CalibrationWarning)


def _message_of_order(order: Order, backbone: Backbone, classes: np.ndarray) -> str:
    labels = classes.tolist()
    native = np.arange(len(labels)) if backbone.columns is None else np.array(backbone.columns)
    better = native[order.outputs]
    moved = np.flatnonzero(better != native)
    listed = ", ".join(
        f"output {better[i]} for {labels[i]!r} instead of {native[i]}" for i in moved[:SHOWN]
    )
    names = {int(i): str(label) for i, label in sorted(zip(better, labels))[:SHOWN]}
    dots = ", .." if len(moved) > SHOWN else ""
    return (
        f"The wrapped model is right on {100 * order.before:.1f}% of the held-out rows, but would "
        f"be on {100 * order.accuracy:.1f}% if its outputs belonged to the labels in another "
        f"order: {listed}{dots}. If that is their order, name the outputs before fit, by "
        f"model.config.id2label = {names}{' and so on' if dots else ''}, or number the labels as "
        "the model does (see TransformerClassifier). If it is not, check that the held-out labels "
        "are coded as in training."
    )


def _message_of_bound(temperature: float) -> str:
    low, high = np.exp(LOG_TEMPERATURE_BOUNDS)
    if temperature > high * (1 - AT_BOUND):
        return (
            f"The temperature is at its upper bound, {high:.0f}: the wrapped model is surer of "
            "wrong labels than any temperature in bounds can mend. Check that its logits are of "
            "the usual size and its outputs in the order of classes_, or fit a head with "
            "readout='refit'."
        )
    if temperature < low * (1 + AT_BOUND):
        return (
            f"The temperature is at its lower bound, {low:.2f}: the logits of the wrapped model "
            "are so small, and so often right, that they would have to be sharper still. Train its "
            "head for longer, or fit one with readout='refit'."
        )
    return ""
