"""The logits of a model and the classes of `y`: matching columns, or a new readout."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs

INVERSE_PENALTY = 0.1  # C of the logistic regression that stands in for a head
SHOWN = 10  # labels that a message names


class Match(NamedTuple):
    """Which native logit belongs to which class.

    Attributes
    ----------
    columns : list of int or None
        One native logit for each class, or None if nothing fits.
    doubt : str or None
        Why that may not be what was meant, as a sentence; None where there is no doubt.
    """

    columns: list[int] | None
    doubt: str | None = None


def match_columns(
    classes: np.ndarray, n_outputs: int | None, names: dict[int, str] | None = None
) -> Match:
    """Match native logits with the classes.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        The sorted labels.
    n_outputs : int or None
        Number of native logits; 1 counts as two classes, None means that there is no head.
    names : dict of int to str, default=None
        Names of the classes in the model (``id2label``). Generic names, such as LABEL_0, count for
        labels of these very names only.

    Returns
    -------
    match : Match
        One logit for each class: by name, exactly or else without regard to case; else by number,
        where the labels are integers from 0 to ``n_outputs - 1``; else, if the model has no names,
        in sorted order, where there are as many classes as logits.
    """
    if n_outputs is None:
        return Match(None)
    n_native = max(2, n_outputs)
    columns = {} if names is None else {str(name): int(i) for i, name in names.items()}
    if len(columns) != n_native:
        columns = {}
    labels = classes.tolist()
    match = _by_name(labels, columns)
    if match is not None:
        return match
    if classes.dtype.kind in "buif" and all(label in range(n_native) for label in labels):
        numbers = [int(label) for label in labels]
        return Match(numbers, _doubt_of_numbers(numbers, n_native))
    is_generic = all(name.upper() == f"LABEL_{i}" for name, i in columns.items())
    if is_generic and len(labels) == n_native:
        return Match(list(range(n_native)), _doubt_of_order(labels))
    return Match(None)


def _by_name(labels: list[Any], columns: dict[str, int]) -> Match | None:
    """Match labels with names, exactly or else without regard to case; None if some fit none."""
    exact = [_find(label, columns) for label in labels]
    found = [column for column in exact if column is not None]
    if columns and len(found) == len(labels) == len(set(found)):
        return Match(found)
    folded = {name.casefold(): column for name, column in columns.items()}
    loose = [_find(label, folded, str.casefold) for label in labels]
    found = [column for column in loose if column is not None]
    is_one_to_one = len(folded) == len(columns) and len(found) == len(labels) == len(set(found))
    if not columns or not is_one_to_one:
        return None
    name_of = {column: name for name, column in columns.items()}
    pairs = ", ".join(f"{x!r} as {name_of[i]!r}" for x, i in list(zip(labels, found))[:SHOWN])
    return Match(
        found,
        f"The labels differ from the names in `model.config.id2label` in upper and lower case: "
        f"{pairs} is what is read. Write them alike if that is right.",
    )


def _find(
    label: Any, columns: dict[str, int], change: Callable[[str], str] = lambda name: name
) -> int | None:
    """Return the column of a label, whose number may be written as an integer or as a float."""
    spellings = [str(label)]
    if isinstance(label, (int, float)) and not isinstance(label, bool) and label == int(label):
        spellings += [str(int(label)), str(float(label))]
    return next((columns[change(name)] for name in spellings if change(name) in columns), None)


def _doubt_of_numbers(numbers: list[int], n_native: int) -> str | None:
    """Doubt numbers that look like a count of the labels, where the model has more classes."""
    first, n_labels = numbers[0], len(numbers)
    if n_labels == n_native or first > 1 or numbers != list(range(first, first + n_labels)):
        return None
    return (
        f"The head has {n_native} outputs, but there are only {n_labels} labels, "
        f"{_shown(numbers)}: they are taken for the numbers of its outputs, and all other outputs "
        "are left out. If the labels number something else, name the outputs in "
        "`model.config.id2label` and give labels of these names; or, if the model does not know "
        "these classes, use readout='refit' of DiffusionCalibratedClassifier."
    )


def _doubt_of_order(labels: list[Any]) -> str | None:
    """Doubt the sorted order of numbers that are text: "10" comes before "2"."""
    numbers = [_trailing_number(label) for label in labels]
    if None in numbers or numbers == sorted(numbers, key=lambda n: n or 0):
        return None
    return (
        "The model does not name its classes, so the labels are taken in sorted order, which for "
        f"text is {_shown(labels)}. If the outputs are in the order of the numbers, give the "
        "labels as integers, or name the outputs in `model.config.id2label`."
    )


def _trailing_number(label: Any) -> int | None:
    digits = re.search(r"\d+$", label) if isinstance(label, str) else None
    return None if digits is None else int(digits[0])


def _shown(labels: list[Any]) -> str:
    """Return some labels as text."""
    dots = ", .." if len(labels) > SHOWN else ""
    return ", ".join(map(repr, labels[:SHOWN])) + dots


def fit_linear_readout(
    features: np.ndarray, training: LabelledInputs, n_classes: int
) -> torch.nn.Linear:
    """Fit a multinomial logistic regression and return it as a layer on raw features.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Pooled features.
    training : LabelledInputs of length n
        Only its labels and weights are read.
    n_classes : int
        Number of classes.

    Returns
    -------
    layer : torch.nn.Linear
        Maps features to logits.
    """
    y = training.y.numpy()
    # relative to their mean: else the unit of the weights would set the penalty
    sample_weight = (training.weight / training.weight.mean()).numpy()
    scaler = StandardScaler().fit(features, sample_weight=sample_weight)
    regression = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000)
    regression.fit(scaler.transform(features), y, sample_weight=sample_weight)
    weight, bias = regression.coef_ / scaler.scale_, regression.intercept_
    bias = bias - weight @ scaler.mean_
    if n_classes == 2:  # one logit z as (-z/2, z/2)
        weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    layer = torch.nn.utils.skip_init(torch.nn.Linear, features.shape[1], n_classes)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer
