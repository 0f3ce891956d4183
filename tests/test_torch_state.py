"""What the caller has set in torch changes no result, at fit or at prediction."""

import contextlib
import threading

import numpy as np
import pytest
import tiny_models
import torch
from sklearn.datasets import load_iris

from sklearn_diffuq import DiffusionCalibratedClassifier, FTTransformerClassifier
from sklearn_diffuq._inputs.torch_state import at_most_threads
from sklearn_diffuq.baselines import LabelSmoothingClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning"),
    pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.ReadoutWarning"),
]


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES = {
    "dtype": default_dtype,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "deterministic": deterministic,
    "device": lambda: torch.device("meta"),
}


def table():
    X, y = load_iris(return_X_y=True)
    estimator = FTTransformerClassifier(
        n_blocks=2, width=8, n_heads=2, max_epochs=2, device="cpu", random_state=0
    )
    options = {"n_steps": 1, "rank": 4, "max_epochs": 1, "random_state": 0, "device": "cpu"}
    return DiffusionCalibratedClassifier(estimator, **options), X, y


def text():
    X, y = tiny_models.make_texts(60, longest=10)
    options = {"n_steps": 1, "rank": 4, "max_epochs": 1, "random_state": 0, "device": "cpu"}
    clf = DiffusionCalibratedClassifier(
        BERT, preprocessor=tiny_models.make_tokenizer(), readout="refit", **options
    )
    return clf, X, y


BERT = tiny_models.make_bert()
CASES = {"table": table, "text": text}


def answers(clf, X):
    parts = [clf.predict_proba(X), clf.sample_proba(X, n_samples=2), clf.score_samples(X)]
    parts.append(clf.wrapped_.predict_proba(X))
    return np.concatenate([np.ravel(part) for part in parts])


@pytest.fixture(scope="module", params=CASES)
def fitted(request):
    clf, X, y = CASES[request.param]()
    clf.fit(X, y)
    return request.param, clf, X, y, answers(clf, X)


@pytest.mark.parametrize("state", STATES)
def test_the_callers_state_changes_nothing(fitted, state, tmp_path):
    kind, clf, X, y, expected = fitted
    again, _, _ = CASES[kind]()
    with STATES[state]():
        assert np.array_equal(answers(clf, X), expected)
        again.fit(X, y)
        again.save(tmp_path / "saved")
        model = None if kind == "table" else again.wrapped_
        loaded = DiffusionCalibratedClassifier.load(tmp_path / "saved", model)
    assert np.array_equal(answers(again, X), expected)
    assert np.array_equal(answers(loaded, X), expected)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", [FTTransformerClassifier, LabelSmoothingClassifier])
def test_the_callers_state_changes_no_other_estimator(state, kind):
    X, y = load_iris(return_X_y=True)
    inner = FTTransformerClassifier(n_blocks=2, width=8, max_epochs=1, device="cpu", random_state=0)
    make = {
        FTTransformerClassifier: lambda: inner,
        LabelSmoothingClassifier: lambda: kind(inner, max_epochs=1, device="cpu", random_state=0),
    }[kind]
    expected = make().fit(X, y).predict_proba(X)
    with STATES[state]():
        assert np.array_equal(make().fit(X, y).predict_proba(X), expected)


def test_a_model_made_in_inference_mode_can_be_fitted(fitted):
    kind, _, X, y, expected = fitted
    if kind == "table":
        pytest.skip("the table model is made by the package")
    clf, _, _ = text()
    with torch.inference_mode():
        clf.estimator = tiny_models.make_bert()
    assert np.array_equal(answers(clf.fit(X, y), X), expected)


def test_fewer_threads_are_for_the_thread_that_asks():
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        with at_most_threads(1):
            assert torch.get_num_threads() == 1
            other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            other.start()
            other.join()
        assert torch.get_num_threads() == 2
        assert seen == [2]
        with at_most_threads(None), at_most_threads(4):
            assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError), at_most_threads(1):
            raise RuntimeError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
