"""From an estimator parameter to a fitted wrapped classifier and its encoded rows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from timm.models import VisionTransformer

from sklearn_diffuq import FTTransformerClassifier, TransformerClassifier
from sklearn_diffuq._inputs import table_encoder
from sklearn_diffuq._wrapped import model_encoder
from sklearn_diffuq._wrapped.wrap import choose_readout, fit_wrapped, label

TWO = np.array([0, 1] * 10)


@pytest.fixture(scope="module")
def table():
    X, y = make_classification(80, 4, n_informative=3, n_redundant=0, random_state=0)
    return X.astype(np.float32), np.array(["no", "yes"])[y]


def _fit(estimator, X, y, **parameters):
    owner = SimpleNamespace(estimator=estimator, preprocessor=None, device="cpu")
    vars(owner).update(parameters)
    wrapped, training = fit_wrapped(owner, X, y, np.ones(len(y)), seed=3)
    np.testing.assert_array_equal(wrapped.classes_[training.y], y)
    expected, found = wrapped.encode(X), training.inputs
    rows = range(len(y))
    for name, value in expected.batch(rows).items():
        assert torch.equal(found.batch(rows)[name], value)
    return wrapped


@pytest.fixture(scope="module")
def small():
    return FTTransformerClassifier(width=8, n_blocks=2, max_epochs=1)


def _vit():
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, embed_dim=8, depth=2, num_heads=2, num_classes=2
    )


IMAGES = np.random.default_rng(0).normal(size=(20, 1, 8, 8)).astype(np.float32)


def test_none_trains_a_transformer_for_tables(table):
    X, y = table
    wrapped = _fit(None, X[:30], y[:30])
    assert isinstance(wrapped, FTTransformerClassifier)
    assert (wrapped.random_state, wrapped.device) == (3, "cpu")


def test_an_unfitted_estimator_is_cloned_and_fitted(table, small):
    wrapped = _fit(small, *table)
    assert wrapped is not small
    assert not hasattr(small, "classes_")
    assert small.random_state is None
    assert wrapped.random_state == 3
    assert wrapped.classes_.tolist() == ["no", "yes"]


def test_a_seed_of_the_estimators_own_is_kept(table):
    small = FTTransformerClassifier(width=8, n_blocks=2, max_epochs=1, random_state=7)
    assert _fit(small, *table).random_state == 7


def test_a_frozen_estimator_is_used_as_it_is(table, small):
    fitted = _fit(small, *table)
    before = {name: value.clone() for name, value in fitted.module_.state_dict().items()}
    assert _fit(FrozenEstimator(fitted), *table) is fitted
    assert all(torch.equal(before[n], v) for n, v in fitted.module_.state_dict().items())
    with pytest.raises(NotFittedError):
        _fit(FrozenEstimator(small), *table)


def test_a_torch_model_is_taken_as_trained():
    model = _vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrapped = _fit(model, IMAGES, TWO)
    assert isinstance(wrapped, TransformerClassifier)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    with torch.no_grad():
        expected = torch.softmax(model.eval()(torch.as_tensor(IMAGES)), 1)
    np.testing.assert_allclose(wrapped.predict_proba(IMAGES), expected, atol=1e-5)


def test_the_path_of_a_model_is_loaded(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(1, 30, (20, 5))

    def tokenizer(texts, **options):
        return {"input_ids": [[int(i) for i in text.split()] for text in texts]}

    tokenizer.pad_token_id, tokenizer.model_max_length = 0, 16
    wrapped = _fit(
        str(tmp_path), [" ".join(map(str, row)) for row in ids], TWO, preprocessor=tokenizer
    )
    with torch.no_grad():
        expected = torch.softmax(model(torch.as_tensor(ids)).logits, 1)
    found = wrapped.predict_proba([" ".join(map(str, row)) for row in ids])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_other_estimators_are_refused_without_being_fitted(table, frozen, monkeypatch):
    estimator = LogisticRegression()
    if frozen:
        estimator = FrozenEstimator(estimator.fit(*table))
    else:
        monkeypatch.setattr(LogisticRegression, "fit", lambda *args: pytest.fail("was fitted"))
    with pytest.raises(TypeError, match=r"cannot look into a LogisticRegression.*Pipeline"):
        _fit(estimator, *table)


def test_rows_for_a_fitted_model_get_its_class_indices(table, small):
    X, y = table
    fitted = _fit(small, X, y)
    weight = np.arange(1.0, 7)
    found = label(fitted, X[:6], y[:6], weight)
    np.testing.assert_array_equal(fitted.classes_[found.y], y[:6])
    assert found.weight.tolist() == weight.tolist()
    assert len(found.inputs) == 6
    with pytest.raises(ValueError, match=r"\['maybe'\] are unknown.*\['no', 'yes'\]"):
        label(fitted, X[:2], np.array(["no", "maybe"]), np.ones(2))


@pytest.mark.parametrize("kind", ["table", "images"])
def test_training_rows_are_encoded_once(table, small, kind, monkeypatch):
    module, name = {
        "table": (table_encoder, "encode_table"),
        "images": (model_encoder, "encode_images"),
    }[kind]
    encode, sizes = getattr(module, name), []

    def counted(X, *args):
        sizes.append(len(X))
        return encode(X, *args)

    monkeypatch.setattr(module, name, counted)
    estimator, X, y = (small, *table) if kind == "table" else (_vit(), IMAGES, TWO)
    owner = SimpleNamespace(estimator=estimator, preprocessor=None, device="cpu")
    fit_wrapped(owner, X, y, np.ones(len(y)), seed=3)
    assert sizes == [len(X)]


@pytest.mark.parametrize("kind", ["table", "images"])
def test_fit_encode_is_fit_and_encode(table, small, kind):
    if kind == "table":
        X, y = table
        clf = clone(small).set_params(random_state=0, device="cpu")
    else:
        X, y, clf = IMAGES, TWO, TransformerClassifier(_vit(), device="cpu")
    weight = np.arange(len(y)) % 3.0
    fitted, twin = clone(clf).fit(X, y, weight), clone(clf)
    training = twin.fit_encode(X, y, weight)
    np.testing.assert_array_equal(twin.predict_proba(X), fitted.predict_proba(X))
    kept = np.flatnonzero(weight)
    assert training.weight.tolist() == weight[kept].tolist()
    np.testing.assert_array_equal(fitted.classes_[training.y], y[kept])
    rows = range(len(kept))
    for name, value in fitted.encode(X[kept]).batch(rows).items():
        assert torch.equal(training.inputs.batch(rows)[name], value)


@pytest.mark.parametrize("readout", ["auto", "frozen", "refit"])
def test_choosing_a_readout_leaves_the_wrapped_classifier(readout):
    clf = TransformerClassifier(_vit(), device="cpu")
    training = clf.fit_encode(IMAGES, TWO, None)
    chosen = choose_readout(clf, readout, training)
    assert clf.backbone_.custom_readout is None
    assert (chosen is clf) == (readout != "refit")
    assert (chosen.backbone_.custom_readout is None) == (readout != "refit")
    if readout == "refit":
        with pytest.raises(ValueError, match="readout='frozen'.*no head"):
            choose_readout(chosen, "frozen", training)
