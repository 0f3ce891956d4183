"""A GPU gives the answers of the CPU, and a row's does not depend on the others there either."""

import copy

import numpy as np
import pytest
import torch
from tiny_models import make_bert, make_images, make_texts, make_tokenizer, make_vit

from sklearn_diffuq import DiffusionCalibratedClassifier, FTTransformerClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning"),
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def _fitted(kind, **kwargs):
    if kind == "images":
        X, y = make_images(200)
        model, options = make_vit(), {}
    elif kind == "texts":
        X, y = make_texts(200)
        X, model, options = np.array(X), make_bert(), {"preprocessor": make_tokenizer()}
    else:
        rng = np.random.default_rng(0)
        X, y = rng.normal(size=(200, 5)), np.arange(200) % 2
        model, options = FTTransformerClassifier(width=8, n_blocks=2, max_epochs=2), {}
    clf = DiffusionCalibratedClassifier(
        model, rank=2, max_epochs=2, device="cpu", random_state=0, **options, **kwargs
    )
    return clf.fit(X, y), X


def _on_gpu(clf):
    clf = copy.deepcopy(clf)
    clf.wrapped_.module_.cuda()
    return clf


@pytest.mark.parametrize("inference", ["mean", "moments", "sampling"])
@pytest.mark.parametrize("kind", ["images", "texts", "table"])
def test_a_gpu_gives_the_probabilities_of_the_cpu(kind, inference):
    clf, X = _fitted(kind, inference=inference)
    np.testing.assert_allclose(_on_gpu(clf).predict_proba(X), clf.predict_proba(X), atol=1e-4)
    np.testing.assert_allclose(_on_gpu(clf).score_samples(X), clf.score_samples(X), atol=1e-2)


@pytest.mark.parametrize("kind", ["images", "texts", "table"])
def test_bfloat16_is_near_float32(kind):
    clf, X = _fitted(kind)
    expected = clf.predict_proba(X)
    half = _on_gpu(clf).set_params(precision="bfloat16").predict_proba(X)
    assert np.abs(half - expected).max() < 0.1
    assert np.abs(half - expected).mean() < 0.01


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["images", "texts", "table"])
def test_a_row_has_one_answer_on_a_gpu(kind, precision):
    clf, X = _fitted(kind)
    clf = _on_gpu(clf).set_params(precision=precision)
    together = clf.predict_proba(X)
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_array_equal(clf.predict_proba(X[order]), together[order])
    for _ in range(2):  # the second time, few rows may be a chunk of their own
        for rows in ([0], [3, 5], order[:40]):
            np.testing.assert_array_equal(clf.predict_proba(X[rows]), together[rows])


@pytest.mark.parametrize("transition", ["unified", "blockwise"])
def test_a_fit_on_a_gpu_is_as_good_as_on_the_cpu(transition):
    X, y = make_images(200)
    losses = {}
    for device in ("cpu", "cuda"):
        clf = DiffusionCalibratedClassifier(
            make_vit(), rank=4, max_epochs=3, device=device, transition=transition,
            precision="float32", random_state=0,
        ).fit(X, y)  # fmt: skip
        assert next(clf.wrapped_.module_.parameters()).device.type == device
        losses[device] = clf.calibration_["moments"].nll
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=0.02)
