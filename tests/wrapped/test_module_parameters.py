"""Estimators with equal torch models have equal hashes, and come back from a pickle whole."""

import copy
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tiny_models import make_bert, make_images, make_texts, make_tokenizer, make_vit

from sklearn_diffuq import DiffusionCalibratedClassifier, TransformerClassifier
from sklearn_diffuq.baselines import LabelSmoothingClassifier

MAKERS = {
    "model": lambda: TransformerClassifier(make_bert()),
    "tokenizer": lambda: TransformerClassifier(make_bert(), preprocessor=make_tokenizer()),
    "bare": lambda: DiffusionCalibratedClassifier(make_vit()),
    "nested": lambda: DiffusionCalibratedClassifier(TransformerClassifier(make_vit())),
    "baseline": lambda: LabelSmoothingClassifier(make_vit()),
    "bfloat16": lambda: TransformerClassifier(make_vit().bfloat16()),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_same_model_has_the_same_hash(make):
    clf = make()
    expected = joblib.hash(clf)
    others = clone(clf), copy.deepcopy(clf), pickle.loads(pickle.dumps(clf)), make()
    assert {joblib.hash(other) for other in others} == {expected}


def test_another_weight_or_parameter_is_another_hash():
    clf, other = MAKERS["model"](), MAKERS["model"]()
    with torch.no_grad():
        other.model.classifier.bias[0] += 1
    frozen = MAKERS["model"]()
    frozen.model.classifier.bias.requires_grad_(False)
    faster = MAKERS["model"]().set_params(lr=1)
    assert len({joblib.hash(each) for each in (clf, other, frozen, faster)}) == 4


def test_the_hash_is_that_of_another_process(tmp_path):
    path = tmp_path / "clf.pkl"
    path.write_bytes(pickle.dumps(MAKERS["model"]()))
    code = f"import joblib, pickle; print(joblib.hash(pickle.load(open({str(path)!r}, 'rb'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == joblib.hash(MAKERS["model"]())


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_has_the_model_whole(copied):
    model = make_bert()
    model.bert.embeddings.position_embeddings.weight = model.bert.embeddings.word_embeddings.weight
    model.classifier.weight.requires_grad_(False)
    model.classifier.bias.is_special = True
    again = copied(TransformerClassifier(model)).model
    for (name, value), (other, expected) in zip(
        again.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(value, expected)
    embeddings = again.bert.embeddings
    assert embeddings.position_embeddings.weight is embeddings.word_embeddings.weight
    assert not again.classifier.weight.requires_grad
    assert again.classifier.bias.requires_grad
    assert again.classifier.bias.is_special
    assert all(isinstance(p, torch.nn.Parameter) for p in again.parameters())


def _counted(monkeypatch):
    fits = []
    fit = TransformerClassifier.fit_encode

    def counted(self, *args):
        fits.append(self)
        return fit(self, *args)

    monkeypatch.setattr(TransformerClassifier, "fit_encode", counted)
    return fits


@pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning")
def test_memory_knows_a_fine_tuned_model_again(tmp_path, monkeypatch):
    fits, (X, y) = _counted(monkeypatch), make_texts(60)
    wrapped = TransformerClassifier(
        make_bert(), preprocessor=make_tokenizer(), finetune=True, max_epochs=1
    )
    clf = DiffusionCalibratedClassifier(
        wrapped, transition="blockwise", memory=str(tmp_path), random_state=0
    )
    first, second = (clone(clf).fit(X, y).predict_proba(X) for _ in range(2))
    assert len(fits) == 1
    assert np.array_equal(first, second)
    clone(clf).set_params(estimator__lr=1e-3).fit(X, y)
    assert len(fits) == 2


class _Probabilities(TransformerMixin, BaseEstimator):
    """A step of a pipeline: the probabilities of a classifier."""

    def __init__(self, estimator):
        self.estimator = estimator

    def fit(self, X, y):
        self.estimator_ = clone(self.estimator).fit(X, y)
        return self

    def transform(self, X):
        return self.estimator_.predict_proba(X)


@pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning")
@pytest.mark.parametrize("kind", [None, DiffusionCalibratedClassifier, LabelSmoothingClassifier])
def test_the_memory_of_a_pipeline_knows_a_step_again(tmp_path, monkeypatch, kind):
    fits, (X, y) = _counted(monkeypatch), make_images(100)
    model = TransformerClassifier(make_vit())
    model = model if kind is None else kind(model, max_epochs=1, random_state=0)
    pipeline = make_pipeline(_Probabilities(model), LogisticRegression(), memory=str(tmp_path))
    found = [clone(pipeline).fit(X, y).predict_proba(X) for _ in range(2)]
    assert len(fits) == 1
    assert np.array_equal(*found)
