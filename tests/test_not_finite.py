"""NaN and infinite values: refused by the numbers of their rows, before anything is fitted."""

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from tiny_models import make_bert, make_texts, make_tokenizer, make_vit

from sklearn_diffuq import DiffusionCalibratedClassifier, TransformerClassifier
from sklearn_diffuq.baselines import MCDropoutClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning"),
    pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.ReadoutWarning"),
]
BLANK = 17


def standardised(image):
    """Scale an image by its own mean and deviation; a blank one becomes NaN."""
    with np.errstate(invalid="ignore"):
        return ((image - image.mean()) / image.std())[None]


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 8, 8)).astype(np.float32), np.arange(60) % 3


def calibrated(model=None, **params):
    params = {"transition": "blockwise", "device": "cpu", "random_state": 0} | params
    model = make_vit(3) if model is None else model
    return DiffusionCalibratedClassifier(model, preprocessor=standardised, **params)


@pytest.mark.parametrize("inference", ["sampling", "moments", "mean"])
@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "score_samples", "predict_uncertainty", "sample_proba"]
)
def test_predictions_name_the_row(images, method, inference):
    X, y = images
    clf = calibrated(inference=inference).fit(X, y)
    X = X.copy()
    X[BLANK] = 1
    with pytest.raises(ValueError, match=rf"1 row.* of X.*: {BLANK}\..*pixel_values.*constant"):
        getattr(clf, method)(X)


@pytest.mark.parametrize("part", ["training", "held out", "given"])
@pytest.mark.parametrize("readout", ["auto", "refit"])
def test_a_fit_names_the_row_that_the_user_gave(images, part, readout):
    X, y = images
    held = {"X_calibration": X[::2].copy(), "y_calibration": y[::2]} if part == "given" else {}
    plain = calibrated(validation_fraction=0.5)
    from sklearn_diffuq._inputs.rows import stratified_split

    seed = int(np.random.RandomState(0).randint(2**31 - 1))
    weight = np.ones(60)
    weight[:6] = 0  # numbers are those of the rows that were given, not of those that count
    train, out = (6 + rows for rows in stratified_split(y[6:], 0.5, seed))
    X = X.copy()
    if part == "given":
        row, name = 5, "X_calibration"
        held["X_calibration"][row] = 1
    else:
        row, name = (train if part == "training" else out)[7], "X"
        X[row] = 1
    with pytest.raises(ValueError, match=rf"1 row.* of {name}, .*: {row}\."):
        plain.set_params(readout=readout).fit(X, y, weight, **held)
    assert not hasattr(plain, "classes_")


def test_an_infinite_embedding_is_the_models(images):
    texts, y = make_texts(60)
    model = make_bert()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[9, 0] = np.inf  # of the word "the"
    bad = [i for i, text in enumerate(texts) if "the" in text.split()]
    few = [text.replace("the", "a") for text in texts]
    clf = DiffusionCalibratedClassifier(
        model, preprocessor=make_tokenizer(), transition="blockwise", device="cpu", random_state=0
    ).fit(few, y)
    few[33] += " the"
    with pytest.raises(ValueError, match=r": 33\. The model's outputs or states"):
        clf.predict_proba(few)
    with pytest.raises(ValueError, match=r": 33\. The model's outputs or states"):
        clf.score_samples(few)
    with pytest.raises(ValueError, match=r": 33\. The model's outputs or states"):
        clf.fit(few, y)
    with pytest.raises(ValueError, match=f"{len(bad)} row.*: {bad[0]}, {bad[1]}"):
        clf.wrapped_.predict_proba(texts)


@pytest.mark.parametrize("finetune", [False, True])
def test_the_wrapped_classifier_names_the_row(images, finetune):
    X, y = images
    clf = TransformerClassifier(
        make_vit(3), preprocessor=standardised, finetune=finetune, device="cpu", random_state=0
    ).fit(X, y)
    X = X.copy()
    X[BLANK] = 1
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        with pytest.raises(ValueError, match=rf": {BLANK}\. .*pixel_values"):
            getattr(clf, method)(X)
    if finetune:
        with pytest.raises(ValueError, match=rf": {BLANK}\. .*pixel_values"):
            clf.fit(X, y)
    X[1] = 1  # one of the first rows, on which the model is cut
    with pytest.raises(ValueError, match=r": 1\. .*pixel_values"):
        clf.fit(X, y)


def test_a_row_beyond_those_of_the_statistics_is_named_where_training_diverges(images, monkeypatch):
    from sklearn_diffuq import _fit_path
    from sklearn_diffuq._inputs.rows import random_rows

    X, y = images
    X_held, y_held = X[40:], y[40:]
    X, y = X[:40].copy(), y[:40]
    monkeypatch.setattr(_fit_path, "MAX_STATISTICS_ROWS", 20)
    seed = int(np.random.RandomState(0).randint(2**31 - 1))
    row = np.setdiff1d(np.arange(40), random_rows(40, 20, seed))[-1]
    X[row] = 1
    clf = calibrated(transition="unified", rank=2)
    with pytest.raises(ValueError, match=rf": {row}\. .*pixel_values"):
        clf.fit(X, y, X_calibration=X_held, y_calibration=y_held)


def test_values_that_float32_cannot_hold_are_refused(images):
    X, y = images
    clf = TransformerClassifier(make_vit(3), device="cpu").fit(X, y)
    large = X.astype(np.float64)
    large[[3, 40], 0, 0] = 1e300, -1e300
    with pytest.raises(ValueError, match=r"2 row.*: 3, 40\. .*float32.*1e\+300.*Scale"):
        clf.predict(large)
    with pytest.raises(ValueError, match=r"of X\['pixel_values'\].*: 3, 40\."):
        clf.predict({"pixel_values": large[:, None]})
    large[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r": 3\. .*NaN"):
        clf.predict(large)
    with pytest.raises(ValueError, match=r"60 row.*outputs or states"):
        clf.predict(np.full_like(X, 1e38))


def test_other_methods_around_the_model_refuse_too(images):
    X, y = images
    wrapped = TransformerClassifier(make_vit(3), preprocessor=standardised, device="cpu").fit(X, y)
    clf = MCDropoutClassifier(FrozenEstimator(wrapped), random_state=0).fit(X, y)
    X = X.copy()
    X[BLANK] = 1
    with pytest.raises(ValueError, match=rf": {BLANK}\."):
        clf.predict_proba(X)
