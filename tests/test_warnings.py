"""Warnings point at the line that called the package."""

import warnings

import pytest
from sklearn.datasets import load_iris

from sklearn_diffuq import DiffusionCalibratedClassifier, FTTransformerClassifier
from sklearn_diffuq._warnings import warn_user
from sklearn_diffuq.exceptions import CalibrationWarning


def test_a_warning_points_at_the_line_that_called_fit():
    X, y = load_iris(return_X_y=True)
    model = FTTransformerClassifier(n_blocks=2, width=4, n_heads=2, max_epochs=1, device="cpu")
    clf = DiffusionCalibratedClassifier(model, transition="blockwise", random_state=0)
    with pytest.warns(CalibrationWarning, match="Only 15 rows") as caught:
        clf.fit(X[::2], y[::2])
    assert {warning.filename for warning in caught} == {__file__}


def test_a_direct_call_points_at_its_own_line():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_user("a sentence", UserWarning)
    assert caught[0].filename == __file__
