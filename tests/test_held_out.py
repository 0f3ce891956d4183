"""Held-out rows that cannot stand for rows to come, and rows to predict that are far off."""

import pickle
import warnings

import numpy as np
import pytest
import sklearn
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from tiny_models import make_bert, make_images, make_texts, make_tokenizer, make_vit

from sklearn_diffuq import (
    DiffusionCalibratedClassifier,
    FTTransformerClassifier,
    TransformerClassifier,
)
from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq.baselines import LabelSmoothingClassifier
from sklearn_diffuq.exceptions import CalibrationWarning

LOADERS = {"iris": load_iris, "wine": load_wine, "cancer": load_breast_cancer}
FOREIGN = "look like no training rows"
SHARED = "are training rows too"
FAR = "X as a whole is far"


def _classifier(**params):
    base = FTTransformerClassifier(n_blocks=2, width=16, max_epochs=2, device="cpu", random_state=0)
    return DiffusionCalibratedClassifier(base, transition="blockwise", random_state=0, **params)


def _said(function, *args, **kwargs):
    """Return the messages of a call, joined."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*args, **kwargs)
    return " | ".join(str(w.message) for w in caught)


def _parts(load):
    X, y = load(return_X_y=True)
    return train_test_split(X, y, test_size=0.4, random_state=0, stratify=y)


# Routing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["calibration", "val"])
@pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning")
def test_a_pipeline_that_routes_transforms_the_held_out_rows(name):
    X, X_held, y, y_held = _parts(load_wine)
    scaler = StandardScaler().fit(X)
    by_hand = _classifier().fit(
        scaler.transform(X), y, X_calibration=scaler.transform(X_held), y_calibration=y_held
    )
    X_name, y_name = f"X_{name}", f"y_{name}"
    with sklearn.config_context(enable_metadata_routing=True):
        clf = _classifier().set_fit_request(**{X_name: True, y_name: True})
        pipeline = Pipeline([("scale", StandardScaler()), ("clf", clf)], transform_input=[X_name])
        pipeline.fit(X, y, **{X_name: X_held, y_name: y_held})
        found = pipeline.predict_proba(X_held)
    assert np.array_equal(found, by_hand.predict_proba(scaler.transform(X_held)))


@pytest.mark.parametrize("kind", [DiffusionCalibratedClassifier, LabelSmoothingClassifier])
@pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning")
def test_the_other_names_of_the_held_out_rows(kind):
    X, X_held, y, y_held = _parts(load_iris)
    base = FTTransformerClassifier(n_blocks=1, width=8, max_epochs=1, device="cpu")
    clf = kind(base, random_state=0, max_epochs=1)
    expected = clf.fit(X, y, X_calibration=X_held, y_calibration=y_held).predict_proba(X)
    assert np.array_equal(clf.fit(X, y, X_val=X_held, y_val=y_held).predict_proba(X), expected)
    with pytest.raises(ValueError, match="X_val and y_val belong together"):
        clf.fit(X, y, X_val=X_held)
    with pytest.raises(ValueError, match="X_val is another name of X_calibration"):
        clf.fit(X, y, X_val=X_held, y_val=y_held, X_calibration=X_held, y_calibration=y_held)


# Rows like no training row --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning")
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_held_out_rows_that_were_not_transformed_are_said(load):
    X, X_held, y, y_held = _parts(load)
    scaler = StandardScaler().fit(X)
    held = {"X_calibration": X_held, "y_calibration": y_held}
    with pytest.warns(CalibrationWarning, match=FOREIGN + r".*transform_input=\['X_calib") as said:
        _classifier().fit(scaler.transform(X), y, **held)
    assert all(w.filename == __file__ for w in said)


@pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning")
@pytest.mark.parametrize("load", [load_wine, load_breast_cancer])
def test_held_out_rows_in_other_units_are_said_though_values_are_clipped(load):
    X, X_held, y, y_held = _parts(load)
    scaler = StandardScaler().fit(X)
    with pytest.warns(CalibrationWarning, match=FOREIGN):
        _classifier().fit(scaler.transform(X), y, X_calibration=X_held / 10, y_calibration=y_held)


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_ordinary_and_mildly_corrupted_held_out_rows_are_not_said(load):
    X, X_held, y, y_held = _parts(load)
    scaler = StandardScaler().fit(X)
    X, X_held = scaler.transform(X), scaler.transform(X_held)
    noisy = X_held + np.random.default_rng(0).normal(size=X_held.shape) / 2
    for rows in (X_held, noisy, X_held + 0.3, X_held * 1.3):
        said = _said(_classifier().fit, X, y, X_calibration=rows, y_calibration=y_held)
        assert FOREIGN not in said
        assert SHARED not in said


# Rows that are training rows ------------------------------------------------------------------


def _texts():
    texts, y = make_texts(120)
    texts = [f"{text} {i}" for i, text in enumerate(texts)]
    vocabulary = make_bert(), make_tokenizer()
    return TransformerClassifier(vocabulary[0], preprocessor=vocabulary[1]), texts, y


def _images():
    return TransformerClassifier(make_vit()), *make_images(150)


def _transformed():
    model = TransformerClassifier(make_vit(), preprocessor=lambda image: image[None] * 2)
    X, y = make_images(150)
    return model, list(X), y


def _table():
    X, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return FTTransformerClassifier(n_blocks=1, max_epochs=1, device="cpu"), X[order], y[order]


@pytest.mark.parametrize("make", [_images, _transformed, _table])
def test_held_out_rows_that_are_training_rows_are_said(make):
    model, X, y = make()
    clf = DiffusionCalibratedClassifier(model, transition="blockwise", random_state=0)
    half = len(y) // 2
    with pytest.warns(CalibrationWarning, match=rf"{half} of the {half} rows .*{SHARED}") as said:
        clf.fit(X, y, X_calibration=X[:half], y_calibration=y[:half])
    assert {w.filename for w in said if SHARED in str(w.message)} == {__file__}
    said = _said(clf.fit, X[half:], y[half:], X_calibration=X[:half], y_calibration=y[:half])
    assert SHARED not in said
    few = [*range(half), *range(half, half + 8)]
    X_few = [X[i] for i in few] if isinstance(X, list) else X[few]
    said = _said(clf.fit, X[half:], y[half:], X_calibration=X_few, y_calibration=y[few])
    assert SHARED not in said


def test_texts_that_are_training_texts_are_said():
    model, texts, y = _texts()
    # the tokenizer knows few words: many texts are the same to the model
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["good", "bad", "film", "plot", "a"], 12)) for _ in texts]
    clf = DiffusionCalibratedClassifier(model, transition="blockwise", random_state=0)
    held = {"X_calibration": texts[:60], "y_calibration": y[:60]}
    assert SHARED in _said(clf.fit, texts, y, **held)
    assert SHARED not in _said(clf.fit, texts[60:], y[60:], **held)


def test_rows_that_repeat_by_nature_are_not_said():
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 3, size=(300, 4)).astype(float), np.arange(300) % 2
    assert len(np.unique(X, axis=0)) < 90
    held = {"X_calibration": X[200:], "y_calibration": y[200:]}
    assert SHARED not in _said(_classifier().fit, X[:200], y[:200], **held)


# Rows to predict ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    X, y = make_images(600)
    X = ((X - 0.3) / 0.35).astype(np.float32)
    wrapped = FrozenEstimator(TransformerClassifier(make_vit(), device="cpu").fit(X[:400], y[:400]))
    clf = DiffusionCalibratedClassifier(wrapped, transition="blockwise", random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf.fit(X[:400], y[:400])
    return clf, X[400:], y[400:]


@pytest.mark.parametrize("inference", ["mean", "moments", "sampling"])
def test_a_batch_of_raw_pixels_is_said_once_per_fit(digits, inference, tmp_path):
    clf, X, _ = digits
    clf = pickle.loads(pickle.dumps(clf)).set_params(inference=inference)
    clf.save(tmp_path / "saved")
    loaded = DiffusionCalibratedClassifier.load(tmp_path / "saved", clf.wrapped_)
    raw = (X * 0.35 + 0.3) * 255
    assert FAR not in _said(clf.predict_proba, X)
    with pytest.warns(CalibrationWarning, match=FAR) as said:
        clf.predict_proba(raw)
    assert [w.filename for w in said] == [__file__]
    assert FAR not in _said(clf.predict_proba, raw)
    assert FAR in _said(loaded.predict_uncertainty, raw)


def test_a_few_rows_are_no_batch(digits):
    clf, X, _ = digits
    clf = pickle.loads(pickle.dumps(clf))
    raw = X * 255
    for rows in (raw[:1], raw[:15], np.repeat(raw[:1], 100, 0)):
        assert FAR not in _said(clf.predict_proba, rows)
    assert FAR in _said(clf.predict_proba, raw[:16])


def test_a_model_embeds_no_more_often_for_the_look(digits, monkeypatch):
    clf, X, _ = digits
    clf = pickle.loads(pickle.dumps(clf))
    calls, embed = [], Backbone.embed

    def counted(self, batch):
        calls.append(batch)
        return embed(self, batch)

    monkeypatch.setattr(Backbone, "embed", counted)
    clf.predict_proba(X)
    n_looked = len(calls)
    clf._fitted.said.add("far")
    clf.predict_proba(X)
    assert len(calls) == 2 * n_looked


def test_shifted_test_data_of_one_class_or_mildly_corrupted_are_not_said(digits):
    clf, X, y = digits
    clf = pickle.loads(pickle.dumps(clf))
    rng = np.random.default_rng(0)
    changed = [X + rng.normal(size=X.shape).astype(np.float32) * s for s in (0.1, 0.3, 0.5)]
    changed += [X * 0.6, X + 0.3, np.roll(X, 1, -1), X[:, ::-1].copy()]
    changed += [X[y == k] for k in range(10)]
    for rows in changed:
        assert FAR not in _said(clf.predict_proba, rows)


@pytest.mark.parametrize("load", [*LOADERS.values(), load_digits], ids=[*LOADERS, "digits"])
def test_ordinary_tables_are_not_said(load):
    X, X_test, y, y_test = _parts(load)
    clf = _classifier()
    _said(clf.fit, X, y)
    std, rng = X.std(0), np.random.default_rng(0)
    changed = [X_test, X, X_test + 0.3 * std, X_test + std * rng.normal(size=X_test.shape) / 4]
    changed += [X_test[y_test == k] for k in np.unique(y)] + [X_test[np.argsort(X_test[:, 0])]]
    for rows in changed:
        assert FAR not in _said(clf.predict_proba, rows)


@pytest.mark.parametrize("load", [*LOADERS.values(), load_digits], ids=[*LOADERS, "digits"])
def test_a_batch_of_a_table_that_was_not_transformed_is_said(load):
    X, X_test, y, _ = _parts(load)
    clf = _classifier()
    _said(clf.fit, StandardScaler().fit_transform(X), y)
    assert FAR in _said(clf.predict_proba, X_test)


def test_texts_of_another_kind_are_not_said():
    model, texts, y = _texts()
    clf = DiffusionCalibratedClassifier(model, transition="blockwise", random_state=0)
    _said(clf.fit, texts, y)
    for rows in (texts, ["so so film"] * 40, [text[:12] for text in texts], texts[::-1][:20]):
        assert FAR not in _said(clf.predict_proba, rows)


# Few held-out rows ----------------------------------------------------------------------------


def test_held_out_rows_of_one_class_are_refused_by_name():
    X, X_held, y, y_held = _parts(load_iris)
    one = y_held == 1
    with pytest.raises(ValueError, match="X_calibration needs rows of at least two classes, but"):
        _classifier().fit(X, y, X_calibration=X_held[one], y_calibration=y_held[one])


def test_two_held_out_rows_calibrate_a_temperature_and_say_what_they_do_not():
    X, X_held, y, y_held = _parts(load_iris)
    rows = [np.flatnonzero(y_held == k)[0] for k in (0, 1)]
    clf = _classifier()
    with pytest.warns(CalibrationWarning, match=r"Only 2 rows.*neither is calib.*class\(es\) 2 is"):
        clf.fit(X, y, X_calibration=X_held[rows], y_calibration=y_held[rows])
    assert np.isfinite(clf.predict_proba(X_held)).all()
    assert not clf.noise_scale_.any_noise
    assert clf.noise_scale_.distance == 0
