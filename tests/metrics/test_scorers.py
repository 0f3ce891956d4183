"""Metrics work as scorers with `make_scorer`, for two classes and for more."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_diffuq.metrics import (
    accuracy_at_coverage,
    area_under_risk_coverage_curve,
    augrc,
    expected_calibration_error,
    signed_calibration_gap,
    smooth_calibration_error,
)

LOSSES = [
    expected_calibration_error,
    signed_calibration_gap,
    smooth_calibration_error,
    area_under_risk_coverage_curve,
    augrc,
]
FOLDS = StratifiedKFold(3, shuffle=True, random_state=0)


@pytest.fixture(scope="module", params=["two", "three"])
def named_classes(request):
    loader = load_breast_cancer if request.param == "two" else load_iris
    X, y = loader(return_X_y=True)
    return X, np.array(["red", "green", "blue"])[y]


def model():
    return make_pipeline(StandardScaler(), LogisticRegression())


@pytest.mark.parametrize("metric", [*LOSSES, accuracy_at_coverage])
def test_cross_validation_scores_what_the_probabilities_score(named_classes, metric):
    X, y = named_classes
    better_if_greater = metric is accuracy_at_coverage
    scorer = make_scorer(
        metric, response_method="predict_proba", greater_is_better=better_if_greater
    )
    scores = cross_val_score(model(), X, y, scoring=scorer, cv=FOLDS, error_score="raise")
    sign = 1 if better_if_greater else -1
    for (train, test), score in zip(FOLDS.split(X, y), scores):
        fitted = model().fit(X[train], y[train])
        proba = fitted.predict_proba(X[test])
        assert sign * score == pytest.approx(metric(y[test], proba, labels=fitted.classes_))


def test_scorer_selects_a_hyperparameter(named_classes):
    X, y = named_classes
    scorer = make_scorer(augrc, response_method="predict_proba", greater_is_better=False)
    search = GridSearchCV(model(), {"logisticregression__C": [1e-6, 1.0]}, scoring=scorer, cv=FOLDS)
    assert np.isfinite(search.fit(X, y).cv_results_["mean_test_score"]).all()


def test_named_positive_label_reaches_the_metric():
    X, y = load_breast_cancer(return_X_y=True)
    y = np.where(y == 1, "benign", "malignant")
    fitted = model().fit(X, y)
    scorer = make_scorer(
        expected_calibration_error,
        response_method="predict_proba",
        greater_is_better=False,
        kind="positive",
        pos_label="benign",
    )
    expected = expected_calibration_error(
        y, fitted.predict_proba(X)[:, 0], kind="positive", pos_label="benign"
    )
    assert -scorer(fitted, X, y) == pytest.approx(expected)


def test_fold_without_a_class_needs_labels_and_says_so():
    X, y = load_iris(return_X_y=True)
    fitted = model().fit(X, y)
    options = {"response_method": "predict_proba", "greater_is_better": False}
    with pytest.raises(ValueError, match="Pass labels="):
        make_scorer(augrc, **options)(fitted, X[:100], y[:100])
    scorer = make_scorer(augrc, labels=fitted.classes_, **options)
    assert -0.5 <= scorer(fitted, X[:100], y[:100]) <= 0


def test_sample_weight_reaches_the_metric():
    X, y = load_iris(return_X_y=True)
    fitted = model().fit(X, y)
    weight = np.arange(len(y))
    scorer = make_scorer(
        expected_calibration_error, response_method="predict_proba", greater_is_better=False
    )
    expected = expected_calibration_error(y, fitted.predict_proba(X), sample_weight=weight)
    assert -scorer(fitted, X, y, sample_weight=weight) == pytest.approx(expected)
