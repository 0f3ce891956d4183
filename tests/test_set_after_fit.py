"""Parameters set to nonsense after fit are refused by name, or change nothing."""

import copy
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_iris
from tiny_baselines import make
from tiny_models import make_images, make_vit

from sklearn_diffuq import (
    DiffusionCalibratedClassifier,
    FTTransformerClassifier,
    TransformerClassifier,
)

METHODS = ("predict_proba", "predict", "sample_proba", "predict_uncertainty", "score_samples")
NONSENSE = [object(), "nonsense", -1, None, True]


def _table():
    return FTTransformerClassifier(n_blocks=1, width=8, max_epochs=1, device="cpu", random_state=0)


ESTIMATORS = {
    "table": _table,
    "images": lambda: TransformerClassifier(make_vit(), finetune=True, max_epochs=1),
    "diffusion": lambda: DiffusionCalibratedClassifier(_table(), transition="blockwise"),
    "dropout": lambda: make("MCDropoutClassifier", _table()),
    "ensemble": lambda: make("DeepEnsembleClassifier", _table()),
    "sgpa": lambda: make("SGPAClassifier", _table(), max_epochs=1),
    "sngp": lambda: make("SNGPClassifier", _table()),
}


def _answer(clf, method, X):
    answer = getattr(clf, method)(X)
    return (
        np.concatenate([np.ravel(v) for v in answer.values()]) if method == METHODS[3] else answer
    )


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_nonsense_set_after_fit_is_refused_by_name_or_has_no_effect(kind):
    X, y = make_images(60) if kind == "images" else load_iris(return_X_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf = ESTIMATORS[kind]().fit(X, y)
        methods = [method for method in METHODS if hasattr(clf, method)]
        expected = {method: _answer(clf, method, X[:9]) for method in methods}
        n_refused = 0
        for name in clf.get_params(deep=False):
            for value in NONSENSE:
                changed = copy.copy(clf)
                setattr(changed, name, value)
                for method in methods:
                    try:
                        found = _answer(changed, method, X[:9])
                    except ValueError as error:
                        assert name in str(error), (name, value, method)  # noqa: PT017
                        n_refused += 1
                    else:
                        is_default = value is None and name == "n_steps"
                        assert np.array_equal(found, expected[method]) or is_default, (name, value)
    assert (n_refused > 0) == (kind in ("diffusion", "dropout", "sgpa"))
