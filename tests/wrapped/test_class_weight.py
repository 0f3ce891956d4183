"""Class weights train the wrapped model as the same sample weights would."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_classification
from tiny_models import make_bert, make_texts, make_tokenizer

from sklearn_diffuq import (
    DiffusionCalibratedClassifier,
    FTTransformerClassifier,
    TransformerClassifier,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning"),
    pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.ReadoutWarning"),
]


def _table():
    X, y = make_classification(200, 6, n_classes=2, weights=[0.8], flip_y=0.2, random_state=0)
    model = FTTransformerClassifier(
        n_blocks=1, width=8, max_epochs=8, lr=1e-2, device="cpu", random_state=0
    )
    return model, X, np.array(["no", "yes"])[y]


def _text(**params):
    texts, y = make_texts(60, longest=12)
    options = {"preprocessor": make_tokenizer(), "random_state": 0} | params
    return TransformerClassifier(make_bert(), **options), texts, y


MAKERS = {
    "table": _table,
    "finetuned": lambda: _text(finetune=True, max_epochs=2, lr=1e-3),
    "readout": lambda: (
        TransformerClassifier(make_bert(head=False), preprocessor=make_tokenizer()),
        *make_texts(60, longest=12),
    ),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("weighted", [False, True])
def test_class_weights_are_the_same_sample_weights(make, weighted):
    model, X, y = make()
    own = np.random.default_rng(0).integers(1, 4, len(y)).astype(float) if weighted else None
    given = np.ones(len(y)) if own is None else own
    plain = clone(model).fit(X, y, own).predict_proba(X)
    first, second = np.unique(y)
    balanced = given / np.where(y == first, given[y == first].sum(), given[y == second].sum())
    cases = [
        ({first: 1.0, second: 5.0}, given * np.where(y == second, 5.0, 1.0)),
        ("balanced", balanced),
    ]
    for class_weight, weight in cases:
        found = clone(model).set_params(class_weight=class_weight).fit(X, y, own)
        expected = clone(model).fit(X, y, weight).predict_proba(X)
        np.testing.assert_allclose(found.predict_proba(X), expected, atol=1e-5)
        # random weights are nearly balanced
        assert weighted or np.abs(expected - plain).max() > 1e-4


def test_a_class_that_has_no_weight_is_named():
    model, X, y = _table()
    with pytest.raises(ValueError, match="yes.*class_weight"):
        model.set_params(class_weight={"no": 1.0, "other": 2.0}).fit(X, y)
    with pytest.raises(ValueError, match="class_weight"):
        model.set_params(class_weight="equal").fit(X, y)


def test_calibration_counts_the_rows_as_they_are(monkeypatch):
    from sklearn_diffuq import _classifier

    model, X, y = _table()
    seen, fit_path = [], _classifier.fit_path

    def spy(backbone, training, held_out, *args):
        seen.extend([training.weight, held_out.weight])
        return fit_path(backbone, training, held_out, *args)

    monkeypatch.setattr(_classifier, "fit_path", spy)
    model.set_params(class_weight="balanced")
    DiffusionCalibratedClassifier(model, transition="blockwise", random_state=0).fit(X, y)
    assert len(seen) == 2
    assert all(torch.equal(weight, torch.ones_like(weight)) for weight in seen)


def test_a_refitted_readout_has_the_class_weights_of_the_wrapped_model():
    model, X, y = _table()
    options = {"transition": "blockwise", "readout": "refit", "inference": "mean"}
    found = []
    for weight in (None, {"no": 1.0, "yes": 10.0}):
        wrapped = clone(model).set_params(class_weight=weight)
        clf = DiffusionCalibratedClassifier(wrapped, random_state=0, **options).fit(X, y)
        found.append(clf.wrapped_.predict_proba(X)[:, 1].mean())
    assert found[1] > found[0] + 0.1


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_weights_that_are_none_are_refused(weight):
    X = np.random.default_rng(0).normal(size=(40, 2))
    clf = FTTransformerClassifier(class_weight={0: weight, 1: 1.0}, max_epochs=1, device="cpu")
    with pytest.raises(ValueError, match="class_weight must be finite and not negative"):
        clf.fit(X, np.arange(40) % 2)
