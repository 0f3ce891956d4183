"""Fits in several threads give the bits of fits alone, and leave the caller's state as it was."""

import threading
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from tiny_models import make_bert, make_images, make_texts, make_tokenizer, make_vit

from sklearn_diffuq import (
    DiffusionCalibratedClassifier,
    FTTransformerClassifier,
    TransformerClassifier,
)
from sklearn_diffuq._inputs.torch_state import own_torch_state
from sklearn_diffuq.baselines import LabelSmoothingClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


def _table():
    model = FTTransformerClassifier(n_blocks=2, width=8, n_heads=2, max_epochs=4, device="cpu")
    clf = DiffusionCalibratedClassifier(model, rank=2, max_epochs=2, random_state=0, device="cpu")
    return [clone(clf).set_params(random_state=seed) for seed in range(4)], *load_iris(
        return_X_y=True
    )


def _text():
    """Models with dropout, which are fine-tuned."""
    model = TransformerClassifier(
        make_bert(), preprocessor=make_tokenizer(), finetune=True, lr=1e-3, max_epochs=2
    )
    return [clone(model).set_params(random_state=seed) for seed in range(4)], *make_texts(60)


def _shared():
    """One fitted model in several fits at the same time."""
    X, y = make_images(120)
    wrapped = FrozenEstimator(TransformerClassifier(make_vit()).fit(X, y))
    options = {"random_state": 0, "max_epochs": 2}
    diffusion = DiffusionCalibratedClassifier(wrapped, rank=2, **options)
    smoothed = LabelSmoothingClassifier(wrapped, **options)
    return [diffusion, smoothed, clone(diffusion), clone(smoothed)], X, y


@pytest.mark.parametrize("make", [_table, _text, _shared])
def test_concurrent_fits_give_the_bits_of_single_ones(make):
    models, X, y = make()
    alone = [clone(model).fit(X, y).predict_proba(X) for model in models]
    before = torch.get_rng_state()
    start = threading.Barrier(len(models))

    def fit(model):
        start.wait()
        return model.fit(X, y).predict_proba(X)

    with ThreadPoolExecutor(len(models)) as pool:
        together = list(pool.map(fit, models))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_search_with_threads_gives_the_scores_of_one_without():
    X, y = load_iris(return_X_y=True)
    model = FTTransformerClassifier(n_blocks=2, width=8, n_heads=2, random_state=0, device="cpu")
    grid = {"max_epochs": [3, 4]}
    alone = GridSearchCV(model, grid, cv=2, scoring="neg_log_loss").fit(X, y)
    with joblib.parallel_config("threading", n_jobs=4):
        together = GridSearchCV(model, grid, cv=2, scoring="neg_log_loss").fit(X, y)
    scores = [search.cv_results_["mean_test_score"] for search in (alone, together)]
    assert np.array_equal(*scores)


@pytest.mark.parametrize("make", [_table, _text, _shared])
def test_fit_and_prediction_draw_nothing_from_the_callers_state(make):
    models, X, y = make()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    models[0].fit(X, y).predict_proba(X)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_the_default_dtype_is_given_back_by_the_last_of_several_threads():
    entered, left, found = threading.Event(), threading.Event(), []

    def second():
        with own_torch_state():
            entered.set()
            left.wait()
            found.append(torch.get_default_dtype())

    thread = threading.Thread(target=second)
    torch.set_default_dtype(torch.float64)
    try:
        with own_torch_state():
            thread.start()
            entered.wait()
        left.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == [torch.float32]
