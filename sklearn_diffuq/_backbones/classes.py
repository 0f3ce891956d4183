"""The logits of a model and the classes of `y`: matching columns, or a new readout."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs

INVERSE_PENALTY = 0.1  # C of the logistic regression that stands in for a head


def match_columns(
    classes: np.ndarray, n_outputs: int | None, names: dict[int, str] | None = None
) -> list[int] | None:
    """Match native logits with the classes.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        The sorted labels.
    n_outputs : int or None
        Number of native logits; 1 counts as two classes, None means that there is no head.
    names : dict of int to str, default=None
        Names of the classes in the model (``id2label``); generic names count as none.

    Returns
    -------
    columns : list of int or None
        One logit for each class: by name; else by number, where the labels are integers from 0 to
        ``n_outputs - 1``; else, if the model has no names, in sorted order, where there are as many
        classes as logits. None if nothing fits.
    """
    if n_outputs is None:
        return None
    n_native = max(2, n_outputs)
    columns = {} if names is None else {str(name): int(i) for i, name in names.items()}
    if all(name == f"LABEL_{i}" for name, i in columns.items()) or len(columns) != n_native:
        columns = {}
    labels = classes.tolist()
    if columns and all(str(label) in columns for label in labels):
        return [columns[str(label)] for label in labels]
    if classes.dtype.kind in "buif" and all(label in range(n_native) for label in labels):
        return [int(label) for label in labels]
    if not columns and len(labels) == n_native:
        return list(range(n_native))
    return None


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
