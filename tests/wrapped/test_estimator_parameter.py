"""The parameters of the wrapped estimator, also where it is the default one."""

import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from tiny_models import make_vit

from sklearn_diffuq import (
    DiffusionCalibratedClassifier,
    FTTransformerClassifier,
)
from sklearn_diffuq.baselines import MCDropoutClassifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning")
KINDS = [DiffusionCalibratedClassifier, MCDropoutClassifier]


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_the_default_estimator_can_be_set(kind):
    clf = kind(device="cpu")
    assert clf.set_params(estimator__max_epochs=3, estimator__width=8) is clf
    assert (
        clf.estimator.get_params()
        == FTTransformerClassifier(max_epochs=3, width=8, device="cpu").get_params()
    )
    assert clone(clf).get_params()["estimator__width"] == 8
    given = clf.estimator
    assert clf.set_params(estimator__width=16).estimator is given
    clf.set_params(estimator=None, estimator__n_heads=2)
    assert (clf.estimator.n_heads, clf.estimator.max_epochs) == (2, 40)


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_estimator_stays_none_otherwise(kind):
    clf = kind().set_params(device="cpu")
    assert clf.estimator is None
    assert not any(name.startswith("estimator__") for name in clf.get_params())


def test_a_parameter_that_the_default_estimator_does_not_have_is_named():
    with pytest.raises(ValueError, match=r"Invalid parameter 'depth'.*FTTransformerClassifier"):
        DiffusionCalibratedClassifier().set_params(estimator__depth=3)


@pytest.mark.parametrize("model", [make_vit(), "a/path"], ids=["module", "path"])
def test_a_model_without_parameters_says_what_to_write(model):
    clf = DiffusionCalibratedClassifier(model)
    with pytest.raises(ValueError, match=r"estimator__lr .* TransformerClassifier\(model, lr="):
        clf.set_params(estimator__lr=1e-3)
    assert clf.estimator is model


def test_a_search_goes_over_the_parameters_of_the_default_estimator():
    X, y = load_iris(return_X_y=True)
    clf = DiffusionCalibratedClassifier(transition="blockwise", random_state=0, device="cpu")
    grid = {"estimator__max_epochs": [1, 4], "estimator__n_blocks": [1]}
    search = GridSearchCV(clf, grid, cv=2, scoring="neg_log_loss", error_score="raise").fit(X, y)
    best = search.best_estimator_.wrapped_
    assert (best.max_epochs, best.n_blocks) == (search.best_params_["estimator__max_epochs"], 1)
    assert best.n_iter_ == best.max_epochs
    assert search.best_index_ == 1
    assert clf.estimator is None
