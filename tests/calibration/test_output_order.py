"""Outputs in another order than the labels: found where they are, and only there."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import make_bert, make_texts, make_tokenizer

from sklearn_diffuq import DiffusionCalibratedClassifier, TransformerClassifier
from sklearn_diffuq._calibration.calibrator import Reference
from sklearn_diffuq._calibration.output_order import (
    better_order,
    is_below_chance,
    warn_of_doubtful_outputs,
)
from sklearn_diffuq._calibration.temperature import fit_temperature
from sklearn_diffuq.exceptions import CalibrationWarning


def labelled(rng, n, n_classes, sharpness):
    """Return logits, and labels drawn from their softmax."""
    logits = torch.as_tensor(sharpness * rng.normal(size=(n, n_classes)) + rng.normal(n_classes))
    return logits, torch.multinomial(logits.softmax(1), 1)[:, 0]


@pytest.mark.parametrize("n_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("n", [30, 300])
def test_well_matched_models_raise_no_alarm(n, n_classes):
    rng = np.random.default_rng(0)
    for seed in range(300):
        logits, y = labelled(rng, n, n_classes, sharpness=[0.3, 1, 4][seed % 3])
        assert better_order(logits, y) is None
        assert not is_below_chance(logits, y)


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_random_heads_on_thirty_rows_raise_no_alarm(n_classes):
    rng = np.random.default_rng(1)
    for _ in range(1000):
        logits = torch.as_tensor(rng.normal(size=(30, n_classes)) + rng.normal(size=n_classes))
        y = torch.as_tensor(rng.permutation(np.arange(30) % n_classes))
        assert better_order(logits, y) is None
        assert not is_below_chance(logits, y)


def test_rotated_outputs_are_found_with_their_order():
    rng = np.random.default_rng(0)
    for n_classes in (2, 3, 10):
        outputs = np.roll(np.arange(n_classes), 1)
        logits, y = labelled(rng, 300, n_classes, sharpness=3)
        order = better_order(logits[:, np.argsort(outputs)], y)
        assert order.outputs.tolist() == outputs.tolist()
        accuracy = float((logits.argmax(1) == y).double().mean())
        assert order.accuracy == pytest.approx(accuracy)
        assert order.before < 0.5


def test_two_outputs_of_ten_are_found():
    logits, y = labelled(np.random.default_rng(0), 1000, 10, sharpness=3)
    order = better_order(logits[:, [0, 1, 2, 7, 4, 5, 6, 3, 8, 9]], y)
    assert order.outputs.tolist() == [0, 1, 2, 7, 4, 5, 6, 3, 8, 9]


class OneOrder:
    columns = None


@pytest.mark.parametrize(
    ("scale", "is_right", "message"),
    [(3e3, False, "upper bound, 100"), (0.02, True, "lower bound, 0.01")],
)
def test_a_temperature_at_a_bound_is_said(scale, is_right, message):
    logits, y = labelled(np.random.default_rng(0), 3000, 3, sharpness=1)
    logits = scale * (torch.eye(3)[y] if is_right else logits.float())
    reference = Reference(logits, *fit_temperature(logits[None], y))
    with pytest.warns(CalibrationWarning, match=message):
        warn_of_doubtful_outputs(reference, y, OneOrder, np.arange(3))


def test_worse_than_chance_without_an_order_is_said():
    rng = np.random.default_rng(0)
    y = torch.as_tensor(rng.integers(0, 10, 60))
    logits = torch.as_tensor(rng.normal(size=(60, 10)))
    logits[torch.arange(60), y] -= 1.5  # never the label, but no other order either
    logits = logits.float()
    reference = Reference(logits, *fit_temperature(logits[None], y))
    assert better_order(logits, y) is None
    with pytest.warns(CalibrationWarning, match="worse than chance"):
        warn_of_doubtful_outputs(reference, y, OneOrder, np.arange(10))


@pytest.fixture(scope="module")
def trained():
    """Return a fine-tuned model, texts and labels that it mostly gets right."""
    texts, y = make_texts(300, longest=5)
    options = {"lr": 3e-3, "max_epochs": 6, "batch_size": 8, "random_state": 0, "device": "cpu"}
    clf = TransformerClassifier(
        make_bert(), preprocessor=make_tokenizer(), finetune=True, **options
    ).fit(texts[:150], y[:150])
    return clf.module_, texts[150:], y[150:]


def _fit(model, texts, labels, transition="blockwise"):
    clf = DiffusionCalibratedClassifier(
        model,
        preprocessor=make_tokenizer(),
        transition=transition,
        max_epochs=1,
        validation_fraction=0.4,
        device="cpu",
        random_state=0,
    )
    return clf.fit(texts, labels)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_swapped_labels_are_said_with_the_remedy_and_the_remedy_helps(trained):
    model, texts, y = trained
    words = np.array(["positive", "negative"])[y]  # sorted, they are in the other order
    with pytest.warns(CalibrationWarning, match="another order") as warned:
        clf = _fit(model, texts, words)
    message = str(warned[0].message)
    assert warned[0].filename == __file__  # the line that called fit
    assert "output 1 for 'negative' instead of 0, output 0 for 'positive' instead of 1" in message
    assert clf.score(texts, words) < 0.2
    before = model.config.id2label
    model.config.id2label = {0: "positive", 1: "negative"}
    assert f"id2label = {model.config.id2label}" in message
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", CalibrationWarning)
            clf = _fit(model, texts, words)
        assert clf.score(texts, words) > 0.9
    finally:
        model.config.id2label = before


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_right_labels_of_any_kind_raise_no_alarm(trained):
    model, texts, y = trained
    for labels in (y, y.astype(float), np.array(["a", "b"])[y], pd.Series(y, dtype="boolean")):
        with warnings.catch_warnings():
            warnings.simplefilter("error", CalibrationWarning)
            _fit(model, texts, labels)
