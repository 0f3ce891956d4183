import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_wine, make_blobs, make_moons
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import (
    GridSearchCV,
    cross_val_predict,
    cross_validate,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_diffuq import FTTransformerClassifier


def quick(**kwargs):
    """Return a classifier that fits in a fraction of a second."""
    options = {"n_blocks": 2, "width": 16, "max_epochs": 5, "device": "cpu", "random_state": 0}
    return FTTransformerClassifier(**(options | kwargs))


@pytest.fixture(scope="module")
def moons():
    return make_moons(300, noise=0.2, random_state=0)


@pytest.mark.parametrize("load", [load_wine, load_breast_cancer])
def test_defaults_are_about_as_good_as_a_linear_model_on_easy_tables(load):
    X, y = load(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
    clf = FTTransformerClassifier(device="cpu", random_state=0).fit(X_train, y_train)
    linear = make_pipeline(StandardScaler(), LogisticRegression()).fit(X_train, y_train)
    assert clf.score(X_test, y_test) >= linear.score(X_test, y_test) - 0.03
    assert log_loss(y_test, clf.predict_proba(X_test)) < 0.25


def test_curved_classes_are_learned(moons):
    X, y = moons
    clf = FTTransformerClassifier(device="cpu", random_state=0).fit(X[:200], y[:200])
    assert clf.score(X[200:], y[200:]) > 0.92  # a linear model has 0.87


def test_a_row_has_the_same_bits_alone_in_any_batch_and_in_any_order(moons):
    X, y = moons
    clf = quick().fit(X, y)
    together = clf.decision_function(X)
    order = np.random.default_rng(0).permutation(len(X))
    assert (clf.decision_function(X[order]) == together[order]).all()
    for i in range(0, 300, 23):
        assert clf.decision_function(X[i : i + 1]) == together[i]
        assert (clf.decision_function(X[i : i + 7]) == together[i : i + 7]).all()


def test_one_seed_gives_one_model_and_leaves_the_global_state(moons):
    X, y = moons
    state = torch.get_rng_state()
    first = quick().fit(X, y)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    same, other = quick().fit(X, y), quick(random_state=1).fit(X, y)
    assert (first.decision_function(X) == same.decision_function(X)).all()
    assert not (first.decision_function(X) == other.decision_function(X)).all()


def test_rows_of_weight_zero_are_not_seen(moons):
    X, y = moons
    weight = np.ones(300)
    weight[::3] = 0
    X_odd, y_odd = X.copy(), y.astype(object)
    X_odd[::3] = 1e6  # would change the scale
    y_odd[::3] = "a class of its own"
    weighted = quick().fit(X_odd, y_odd.astype(str), sample_weight=weight)
    plain = quick().fit(X[weight > 0], y[weight > 0].astype(str))
    assert weighted.classes_.tolist() == ["0", "1"]
    assert (weighted.decision_function(X) == plain.decision_function(X)).all()


def test_weights_shift_the_probabilities():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(400, 2)), rng.integers(0, 2, size=400)  # nothing to learn
    weight = np.where(y == 1, 4.0, 1.0)
    proba = quick(max_epochs=15).fit(X, y, sample_weight=weight).predict_proba(X)
    assert proba[:, 1].mean() == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    "labels", [["no", "yes"], [-1, 1], [True, False], [7, 2], [0.0, 1.0]], ids=str
)
def test_any_labels(moons, labels):
    X, y = moons
    y = np.array(labels)[y]
    named = pd.Series(y, index=np.arange(300)[::-1])  # positions count, not the index
    clf = quick(max_epochs=20).fit(X, named)
    assert clf.classes_.tolist() == sorted(labels)
    assert set(clf.predict(X).tolist()) == set(labels)
    assert clf.score(X, y) > 0.8


def test_frames_with_categories_and_missing_values():
    rng = np.random.default_rng(0)
    n = 400
    kind, size = rng.choice(["a", "b", "c"], size=n), rng.normal(size=n)
    hidden = rng.random(n) < 0.3
    # the class needs both columns together, and the missing ones have a class of their own
    y = np.where(hidden, 1, (size > 0) ^ (kind == "a"))
    X = pd.DataFrame({"kind": kind, "size": np.where(hidden, np.nan, size)})
    clf = FTTransformerClassifier(device="cpu", random_state=0).fit(X[:300], y[:300])
    assert clf.score(X[300:], y[300:]) > 0.95
    assert clf.feature_names_in_.tolist() == ["kind", "size"]
    new = pd.DataFrame({"kind": ["d", None, "a"], "size": [0.5, 1.0, 1.0]})
    assert np.isfinite(clf.predict_proba(new)).all()


def test_numeric_frames_are_the_array(moons):
    X, y = moons
    frame = pd.DataFrame(X, columns=["a", "b"])
    assert (quick().fit(frame, y).predict_proba(frame) == quick().fit(X, y).predict_proba(X)).all()


def test_fitting_changes_no_parameter_and_clones_refit(moons):
    X, y = moons
    clf = quick()
    before = clf.get_params()
    clf.fit(X, y)
    assert clf.get_params() == before
    assert (clone(clf).fit(X, y).predict_proba(X) == clf.predict_proba(X)).all()
    assert (pickle.loads(pickle.dumps(clf)).predict_proba(X) == clf.predict_proba(X)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pickles_hold_no_gpu_memory(moons):
    X, y = moons
    clf = quick(device="cuda").fit(X, y)
    assert next(clf.module_.parameters()).is_cuda
    state = clf.__getstate__()
    assert not next(state["module_"].parameters()).is_cuda
    assert state["backbone_"].module is state["module_"]
    loaded = pickle.loads(pickle.dumps(clf))
    np.testing.assert_allclose(loaded.predict_proba(X), clf.predict_proba(X), atol=1e-6)


def test_searches_and_calibration(moons):
    X, y = moons
    proba = cross_val_predict(quick(max_epochs=15), X, y, cv=3, method="predict_proba")
    assert (proba.argmax(1) == y).mean() > 0.8
    search = GridSearchCV(quick(), {"lr": [1e-12, 3e-3]}, cv=2, n_jobs=2).fit(X, y)
    assert search.best_params_ == {"lr": 3e-3}
    calibrated = CalibratedClassifierCV(quick(max_epochs=15), method="sigmoid", cv=2).fit(X, y)
    assert calibrated.score(X, y) > 0.8


def test_weights_are_routed(moons):
    X, y = moons
    with config_context(enable_metadata_routing=True):
        clf = quick().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, clf)
        weight = np.where(y == 1, 1.0, 0.0)
        with pytest.raises(ValueError, match="one class"):  # so the weights have arrived
            cross_validate(
                pipeline, X, y, params={"sample_weight": weight}, cv=2, error_score="raise"
            )


def test_the_epoch_of_lowest_held_out_loss_is_kept(moons):
    X, y = moons
    clf = quick(max_epochs=30, lr=0.05, patience=3).fit(X, y)
    losses = [row["valid_loss"] for row in clf.history_]
    assert clf.n_iter_ == len(losses) < 30
    assert np.argmin(losses) == len(losses) - 4
    every = quick(max_epochs=8, validation_fraction=0).fit(X, y)
    assert every.n_iter_ == 8
    assert "valid_loss" not in every.history_[0]
    assert quick().fit(X[:50], y[:50]).n_iter_ == 5


@pytest.mark.parametrize(("n", "expected"), [(40, 3), (600, 19), (8000, 32)])
def test_automatic_batches_follow_the_number_of_rows(n, expected, monkeypatch):
    sizes = []

    def record(module, batch_loss, epoch_batches, options, validate=None):
        sizes.append(len(epoch_batches(0, np.random.default_rng(0))))
        return []

    monkeypatch.setattr("sklearn_diffuq._training.classification.train_module", record)
    X, y = make_blobs(n, centers=2, random_state=0)
    quick(validation_fraction=0).fit(X, y)
    assert sizes == [expected]


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ([[1.0, np.nan], [0, 1]], [0, 1], "NaN"),
        ([[1.0, np.inf], [0, 1]], [0, 1], "infinity"),
        ([[1.0, 0], [0, 1]], [1, 1], "at least two classes"),
        ([[1.0, 0], [0, 1]], [1, 1, 0], "inconsistent numbers of samples"),
        ([["a", "b"], ["c", "d"]], [0, 1], "could not convert string"),
    ],
)
def test_fit_errors(X, y, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(X, y)


def test_predict_errors(moons):
    X, y = moons
    for method in ("predict", "predict_proba", "decision_function", "encode"):
        with pytest.raises(NotFittedError):
            getattr(quick(), method)(X)
    clf = quick().fit(X, y)
    with pytest.raises(ValueError, match="X has 1 features"):
        clf.predict(X[:, :1])
    with pytest.raises(ValueError, match="multiple of n_heads"):
        quick(width=10, n_heads=3).fit(X, y)
