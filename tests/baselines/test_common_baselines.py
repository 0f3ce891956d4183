"""What every baseline has to do, whatever its method."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import LabelEncoder
from tiny_backbones import text
from tiny_baselines import QUICK, make

from sklearn_diffuq import FTTransformerClassifier, baselines
from sklearn_diffuq.exceptions import CalibrationWarning

pytestmark = [
    pytest.mark.parametrize("name", sorted(QUICK)),
    pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning"),
]


@pytest.fixture(autouse=True)
def _needs_laplace(name):
    if name == "LaplaceClassifier":
        pytest.importorskip("laplace")


def snapshot(trained):
    """Return all that a wrapped model consists of: numbers, flags and hooks."""
    module = trained.backbone_.module
    return (
        {key: value.clone() for key, value in module.state_dict().items()},
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()],
        [p.requires_grad for p in module.parameters()],
    )


def test_every_baseline_is_tested(name):
    assert set(QUICK) == set(baselines.__all__)


def test_parameters_are_got_set_and_cloned(name, images):
    clf = make(name, FrozenEstimator(images.trained))
    assert clf.get_params(deep=False).items() >= QUICK[name].items()
    assert clf.set_params(random_state=3).random_state == 3
    copy = clone(clf)
    assert copy.get_params(deep=False).keys() == clf.get_params(deep=False).keys()
    with pytest.raises(NotFittedError):
        copy.predict_proba(images.X_test)


def test_the_wrapped_model_stays_as_it_is(name, images):
    before = snapshot(images.trained)
    clf = make(name, FrozenEstimator(images.trained)).fit(images.X, images.y)
    clf.predict_proba(images.X_test)
    after = snapshot(images.trained)
    assert after[1:] == before[1:]
    assert all(torch.equal(after[0][key], value) for key, value in before[0].items())


def test_a_torch_model_stays_as_it_is(name, images):
    module = images.trained.backbone_.module
    before = snapshot(images.trained)
    clf = make(name, module).fit(images.X, LabelEncoder().fit_transform(images.y))
    assert clf.score(images.X_test, LabelEncoder().fit_transform(images.y_test)) > 0.6
    after = snapshot(images.trained)
    assert after[1:] == before[1:]
    assert all(torch.equal(after[0][key], value) for key, value in before[0].items())


def test_probabilities_are_those_of_a_row_alone(name, images, fitted):
    clf = fitted(name)
    proba = clf.predict_proba(images.X_test)
    order = np.random.default_rng(0).permutation(len(proba))
    np.testing.assert_array_equal(clf.predict_proba(images.X_test[order]), proba[order])
    for i in (0, 77):
        np.testing.assert_array_equal(clf.predict_proba(images.X_test[[i]]), proba[[i]])


def test_probabilities_are_float64_rows_that_sum_to_one(name, images, fitted):
    clf = fitted(name)
    proba = clf.predict_proba(images.X_test)
    assert proba.shape == (130, 3)
    assert proba.dtype == np.float64
    assert (proba >= 0).all()
    np.testing.assert_allclose(proba.sum(1), 1, rtol=0, atol=1e-12)
    assert clf.n_parameters_ > 0
    assert clf.n_passes_ >= 1


def test_labels_of_strings_come_back(name, images, fitted):
    clf = fitted(name)
    np.testing.assert_array_equal(clf.classes_, ["one", "three", "two"])
    assert clf.score(images.X_test, images.y_test) > 0.8


def test_the_same_seed_gives_the_same_answer(name, images, fitted):
    again = make(name, FrozenEstimator(images.trained)).fit(images.X, images.y)
    proba = fitted(name).predict_proba(images.X_test)
    np.testing.assert_array_equal(again.predict_proba(images.X_test), proba)


def test_predictions_leave_the_global_random_state_alone(name, images, fitted):
    state = torch.get_rng_state()
    fitted(name).predict_proba(images.X_test)
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_average_to_the_probabilities(name, images, fitted):
    clf = fitted(name)
    if not hasattr(clf, "sample_proba"):
        pytest.skip("has no samples")
    samples = clf.sample_proba(images.X_test)
    assert samples.shape[1:] == (130, 3)
    assert np.ptp(samples, axis=0).max() > 1e-4
    np.testing.assert_allclose(samples.mean(0), clf.predict_proba(images.X_test), atol=1e-12)


def test_temperature_scaling_goes_on_top(name, images, fitted):
    clf = fitted(name)
    scaled = CalibratedClassifierCV(FrozenEstimator(clf), method="temperature")
    scaled.fit(images.X_test, images.y_test)
    proba = scaled.predict_proba(images.X_test)
    np.testing.assert_array_equal(proba.argmax(1), clf.predict_proba(images.X_test).argmax(1))


def test_a_fitted_baseline_survives_pickling(name, images, fitted):
    clf = fitted(name)
    copy = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(
        copy.predict_proba(images.X_test), clf.predict_proba(images.X_test)
    )


def test_held_out_rows_can_be_given(name, images):
    clf = make(name, FrozenEstimator(images.trained))
    with pytest.raises(ValueError, match="belong together"):
        clf.fit(images.X, images.y, X_calibration=images.X_test)
    clf.fit(images.X, images.y, X_calibration=images.X_test, y_calibration=images.y_test)
    assert clf.score(images.X_test, images.y_test) > 0.8


def test_too_few_rows_to_hold_out_are_refused(name, images):
    clf = make(name, FrozenEstimator(images.trained))
    rows = [np.flatnonzero(images.y == label)[:2] for label in np.unique(images.y)]
    X, y = images.X[np.concatenate(rows)], images.y[np.concatenate(rows)]
    if "validation_fraction" not in clf.get_params():
        assert clf.fit(X, y).score(X, y) > 0.5  # all rows are training rows
        return
    with pytest.raises(ValueError, match="No rows are left to hold out"):
        clf.fit(X, y)


@pytest.mark.filterwarnings("default::sklearn_diffuq.exceptions.CalibrationWarning")
def test_few_held_out_rows_are_warned_of(name, images):
    clf = make(name, FrozenEstimator(images.trained))
    if "validation_fraction" in clf.get_params():
        with pytest.warns(CalibrationWarning, match=r"Only \d+ rows are held out"):
            clf.fit(images.X[:60], images.y[:60])


def test_only_training_can_be_verbose(name):
    parameters = make(name, None).get_params()
    assert ("verbose" in parameters) == ("max_epochs" in parameters)


def test_texts_with_padding(name):
    backbone, _ = text()
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 50, (60, 7))
    mask = np.ones_like(ids)
    mask[::3, 5:] = 0
    y = np.arange(60) % 2
    X = {"input_ids": ids * mask, "attention_mask": mask}
    held = {key: value[:30] for key, value in X.items()}
    clf = make(name, backbone.module)
    clf.fit(X, y, X_calibration=held, y_calibration=y[:30])
    proba = clf.predict_proba(X)
    longer = {key: np.pad(value, ((0, 0), (0, 2))) for key, value in X.items()}
    np.testing.assert_allclose(clf.predict_proba(longer), proba, atol=1e-4)
    assert clf.decision_function(X).shape == (60,)


def test_an_unfitted_estimator_is_fitted(name):
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    X = rng.normal(size=(200, 4)) + y[:, None]
    table = FTTransformerClassifier(n_blocks=2, width=8, n_heads=2, max_epochs=8, lr=1e-2)
    clf = make(name, table).fit(X, y)
    assert clf.n_features_in_ == 4
    assert clf.score(X, y) > 0.7
    assert not hasattr(table, "classes_")
