"""What the user gives: rows, splits, wrapped models and labels."""

import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.datasets import make_classification
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from timm.models import VisionTransformer

from sklearn_diffuq import FTTransformerClassifier, TransformerClassifier
from sklearn_diffuq._inputs.rows import check_rows, safe_indexing, stratified_split
from sklearn_diffuq._wrapped.wrap import fit_wrapped, label
from sklearn_diffuq.exceptions import CalibrationWarning

TWO = np.array([0, 1] * 10)


# check_rows -----------------------------------------------------------------------------------


def test_rows_come_back_with_unit_weights():
    X = np.arange(40.0).reshape(20, 2)
    found, y, weight = check_rows(X, TWO.tolist(), None)
    assert found is X
    np.testing.assert_array_equal(y, TWO)
    np.testing.assert_array_equal(weight, np.ones(20))


@pytest.mark.parametrize("kind", [np.asarray, pd.DataFrame, lambda X: [str(x) for x in X]])
def test_rows_without_weight_are_dropped(kind):
    X = kind(np.arange(40).reshape(20, 2))
    weight = np.where(np.arange(20) % 3 == 0, 0.0, 2.0)
    kept, y, kept_weight = check_rows(X, TWO, weight)
    expected = np.flatnonzero(weight)
    assert len(kept) == len(expected)
    np.testing.assert_array_equal(y, TWO[expected])
    np.testing.assert_array_equal(kept_weight, 2.0)
    if isinstance(X, list):
        assert kept == [X[i] for i in expected]


def test_a_column_of_labels_is_flattened_with_a_warning():
    with pytest.warns(DataConversionWarning):
        _, y, _ = check_rows(np.zeros((20, 1)), TWO[:, None], None)
    assert y.shape == (20,)


@pytest.mark.parametrize(
    ("X", "y", "weight", "error", "message"),
    [
        (sparse.eye(20).tocsr(), TWO, None, TypeError, "dense data is required"),
        (
            np.zeros((20, 1)),
            np.zeros(20),
            None,
            ValueError,
            r"one class only, .*0\.0.* \(20 sample",
        ),
        (np.zeros((20, 1)), TWO, TWO.astype(float), ValueError, "one class only"),
        (np.zeros((20, 1)), TWO, np.zeros(20), ValueError, "weights .*zero"),
        (np.zeros((20, 1)), TWO, -np.ones(20), ValueError, "Negative"),
        (np.zeros((0, 1)), np.zeros(0), None, ValueError, r"0 sample\(s\)"),
        (np.zeros((20, 1)), None, None, ValueError, "requires y"),
        (np.zeros((19, 1)), TWO, None, ValueError, "inconsistent numbers of samples"),
        (np.zeros((20, 1)), np.linspace(0, 1, 20), None, ValueError, "label type"),
        (np.zeros((20, 1)), np.where(TWO == 0, np.nan, 1.0), None, ValueError, "NaN"),
    ],
)
def test_unusable_rows_are_refused(X, y, weight, error, message):
    with pytest.raises(error, match=message):
        check_rows(X, y, weight)


def test_a_mapping_is_kept_whole_but_not_split():
    X = {"input_ids": np.ones((20, 4), dtype=int)}
    assert check_rows(X, TWO, None)[0] is X
    with pytest.raises(ValueError, match="X is a dict.*SliceDict"):
        safe_indexing(X, [0, 1])
    with pytest.raises(ValueError, match="X is a dict"):
        check_rows(X, TWO, np.arange(20.0))


# stratified_split -----------------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=5),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 100),
)
def test_split_is_complete_disjoint_and_stratified(counts, fraction, seed):
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    expected = [min(round(fraction * n), n - 1) for n in counts]
    if not sum(expected):
        with pytest.raises(ValueError, match="No rows are left to hold out"):
            stratified_split(y, fraction, seed)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        train, held = stratified_split(y, fraction, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(len(y)))
    assert np.bincount(y[held], minlength=len(counts)).tolist() == expected
    assert set(y[train]) == set(y)


def test_split_follows_the_seed():
    first, again, other = (stratified_split(np.repeat([0, 1], 100), 0.3, s)[1] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_small_held_out_part_is_said():
    with pytest.warns(CalibrationWarning, match="Only 4 rows are held out.*validation_fraction"):
        stratified_split(TWO, 0.2, 0)


# fit_wrapped and label ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    X, y = make_classification(80, 4, n_informative=3, n_redundant=0, random_state=0)
    return X.astype(np.float32), np.array(["no", "yes"])[y]


def _fit(estimator, X, y, **parameters):
    owner = SimpleNamespace(estimator=estimator, preprocessor=None, device="cpu")
    vars(owner).update(parameters)
    return fit_wrapped(owner, X, y, np.ones(len(y)), seed=3)


@pytest.fixture(scope="module")
def small():
    return FTTransformerClassifier(width=8, n_blocks=2, max_epochs=1)


def _vit():
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, embed_dim=8, depth=2, num_heads=2, num_classes=2
    )


IMAGES = np.random.default_rng(0).normal(size=(20, 1, 8, 8)).astype(np.float32)


def test_none_trains_a_transformer_for_tables(table, monkeypatch):
    seen = []
    monkeypatch.setattr(FTTransformerClassifier, "fit", lambda self, *args: seen.append(args))
    wrapped = _fit(None, *table)
    assert isinstance(wrapped, FTTransformerClassifier)
    assert (wrapped.random_state, wrapped.device) == (3, "cpu")
    assert len(seen) == 1


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


def _stub(classes):
    return SimpleNamespace(classes_=np.array(classes), encode=list)


@pytest.mark.parametrize(
    ("classes", "y"),
    [(["b", "c", "a"], ["a", "b", "a"]), ([2, 0, 1], [1, 1, 2]), ([False, True], [True])],
)
def test_labels_get_the_models_own_indices(classes, y):
    found = label(_stub(classes), y, np.array(y), np.ones(len(y)))
    assert found.y.tolist() == [classes.index(value) for value in y]
    assert found.weight.dtype == torch.float64


def test_labels_the_model_does_not_know_are_named():
    with pytest.raises(ValueError, match=r"\['d'\] are unknown.*\['b', 'a'\]"):
        label(_stub(["b", "a"]), ["a", "d"], np.array(["a", "d"]), np.ones(2))
