"""A fitted scikit-learn estimator around a transformer classifier, frozen, as what is wrapped."""

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import RFE, SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler
from tiny_models import make_bert, make_texts, make_tokenizer

from sklearn_diffuq import (
    DiffusionCalibratedClassifier,
    FTTransformerClassifier,
    TransformerClassifier,
)
from sklearn_diffuq.exceptions import CalibrationWarning

pytestmark = pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning")


@pytest.fixture(scope="module")
def table():
    X, y = make_classification(240, 6, n_informative=4, random_state=0)
    return 100 + 30 * X, np.array(["no", "yes"])[y]


def small():
    return FTTransformerClassifier(width=8, n_blocks=2, max_epochs=2, device="cpu", random_state=0)


def blockwise(estimator):
    return DiffusionCalibratedClassifier(
        FrozenEstimator(estimator), transition="blockwise", device="cpu", random_state=0
    )


CONTAINERS = {
    "pipeline": lambda steps: make_pipeline(*steps, small()),
    "search": lambda steps: GridSearchCV(
        make_pipeline(*steps, small()), {"fttransformerclassifier__lr": [1e-3]}, cv=2
    ),
    "search inside": lambda steps: make_pipeline(
        *steps, GridSearchCV(small(), {"lr": [1e-3]}, cv=2)
    ),
    "nested": lambda steps: make_pipeline(steps[0], make_pipeline(*steps[1:], small())),
    "calibrated": lambda steps: CalibratedClassifierCV(
        make_pipeline(*steps, small()), ensemble=False, cv=2
    ),
    "threshold": lambda steps: FixedThresholdClassifier(
        make_pipeline(*steps, small()), threshold=0.3
    ),
    "diffusion": lambda steps: make_pipeline(
        *steps, DiffusionCalibratedClassifier(small(), transition="blockwise", random_state=0)
    ),
}


@pytest.mark.parametrize("kind", list(CONTAINERS))
def test_steps_are_applied_at_fit_and_in_every_prediction(kind, table):
    X, y = table
    steps = [StandardScaler(), SelectKBest(k=4)]
    fitted = CONTAINERS[kind](steps).fit(X, y)
    found = blockwise(fitted).fit(X, y, X_calibration=X, y_calibration=y)
    assert found.n_features_in_ == 6
    for step in steps:
        step.fit(X, y)
    Z = steps[1].transform(steps[0].transform(X))
    inner = found.wrapped_._encoder.classifier
    assert inner.n_features_in_ == 4
    expected = blockwise(inner).fit(Z, y, X_calibration=Z, y_calibration=y)
    for name in ("predict_proba", "score_samples", "predict", "decision_function"):
        a, b = getattr(found, name)(X[:50]), getattr(expected, name)(Z[:50])
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(found.sample_proba(X[:9], 2), expected.sample_proba(Z[:9], 2))


def test_without_steps_the_classifier_itself_is_wrapped(table):
    X, y = table
    search = GridSearchCV(small(), {"lr": [1e-3]}, cv=2).fit(X, y)
    clf = blockwise(search).fit(X, y)
    assert clf.wrapped_ is search.best_estimator_


def test_text_in_a_column_of_a_frame(tmp_path):
    texts, y = make_texts(60, longest=12)
    frame = pd.DataFrame({"n": np.arange(60), "text": texts})
    column = ColumnTransformer([("text", "passthrough", ["text"])])
    clf = TransformerClassifier(make_bert(), preprocessor=make_tokenizer(), device="cpu")
    pipeline = make_pipeline(column, clf).fit(frame, y)
    found = blockwise(pipeline).fit(frame, y)
    expected = blockwise(clf.fit(texts, y)).fit(texts, y)
    np.testing.assert_array_equal(found.predict_proba(frame), expected.predict_proba(texts))
    assert found.feature_names_in_.tolist() == ["n", "text"]
    found.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"expected estimator=, a fitted TransformerClassifier"):
        DiffusionCalibratedClassifier.load(tmp_path / "saved")
    loaded = DiffusionCalibratedClassifier.load(tmp_path / "saved", FrozenEstimator(pipeline))
    np.testing.assert_array_equal(loaded.predict_proba(frame), found.predict_proba(frame))


def test_what_is_not_one_transformer_is_refused(table):
    X, y = table
    scaled = StandardScaler().fit_transform(X)
    several = CalibratedClassifierCV(small(), cv=2).fit(X, y)
    others = [
        make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y),
        several,
        BaggingClassifier(small(), n_estimators=1).fit(X, y),
        RFE(LogisticRegression()).fit(scaled, y),
    ]
    names = ["LogisticRegression", "CalibratedClassifierCV", "BaggingClassifier", "RFE"]
    for other, name in zip(others, names, strict=True):
        with pytest.raises(TypeError, match=rf"cannot look into a {name}.*the one model in a"):
            blockwise(other).fit(X, y)
    with pytest.raises(NotFittedError):
        blockwise(make_pipeline(StandardScaler(), small())).fit(X, y)


def test_the_pipeline_is_not_changed(table):
    X, y = table
    pipeline = make_pipeline(StandardScaler(), small()).fit(X, y)
    before = {name: v.clone() for name, v in pipeline[-1].module_.state_dict().items()}
    expected = pipeline.predict_proba(X)
    blockwise(pipeline).set_params(readout="refit").fit(X, y)
    np.testing.assert_array_equal(pipeline.predict_proba(X), expected)
    after = pipeline[-1].module_.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_what_happens_to_the_pipeline_later_has_no_effect(table):
    X, y = table
    pipeline = make_pipeline(StandardScaler(), small()).fit(X, y)
    found = blockwise(pipeline).fit(X, y)
    expected = found.predict_proba(X)
    pipeline[0].mean_ += 100
    np.testing.assert_array_equal(found.predict_proba(X), expected)


def test_other_steps_than_those_of_the_save_are_said(table, tmp_path):
    X, y = table
    pipeline = make_pipeline(StandardScaler(), small()).fit(X, y)
    found = blockwise(pipeline).fit(X, y)
    found.save(tmp_path / "saved")
    load = partial(DiffusionCalibratedClassifier.load, tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(FrozenEstimator(pipeline))
    np.testing.assert_array_equal(loaded.predict_proba(X), found.predict_proba(X))
    for other in (pipeline[-1], make_pipeline(MinMaxScaler().fit(X), pipeline[-1])):
        with pytest.raises(ValueError, match=r"saved after the fitted steps \['StandardScaler'\]"):
            load(FrozenEstimator(other))
    moved = make_pipeline(StandardScaler().fit(X + 100), pipeline[-1])
    with pytest.warns(CalibrationWarning, match=r"steps \['StandardScaler'\] .* are not those"):
        load(FrozenEstimator(moved))
    with pytest.raises(ValueError, match=r"FrozenEstimator\(pipeline\) is expected"):
        load(pipeline)


def test_a_step_that_cannot_be_pickled_is_known_by_its_class(table, tmp_path):
    X, y = table
    pipeline = make_pipeline(FunctionTransformer(lambda x: x / 30), small()).fit(X, y)
    found = blockwise(pipeline).fit(X, y)
    found.save(tmp_path / "saved")
    loaded = DiffusionCalibratedClassifier.load(tmp_path / "saved", FrozenEstimator(pipeline))
    np.testing.assert_array_equal(loaded.predict_proba(X), found.predict_proba(X))
