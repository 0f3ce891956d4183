import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.base import BaseEstimator

from sklearn_diffuq._inputs.table_encoder import TableEncoder
from sklearn_diffuq._state import State
from sklearn_diffuq.exceptions import ColumnWarning


class Owner(BaseEstimator):
    """Stands for the estimator that features are counted on."""


def arrays(inputs):
    return {name: tensor.numpy() for name, tensor in inputs.batch(range(len(inputs))).items()}


def fitted(owner, X):
    encoder = TableEncoder()
    return encoder, arrays(encoder.fit_transform(owner, X, np.arange(len(X))))


def encoded(owner, encoder, X):
    return arrays(encoder.transform(owner, X))


FRAME = pd.DataFrame(
    {
        "age": [20.0, 40.0, np.nan, 30.0],
        "colour": ["red", "blue", None, "red"],
        "count": pd.array([1, 2, pd.NA, 3], dtype="Int64"),
        "size": pd.Categorical(["s", "l", "l", "s"], categories=["s", "m", "l"]),
        "new": [True, False, True, True],
    }
)


def test_numbers_become_normal_quantiles():
    X = np.random.default_rng(0).lognormal(sigma=3, size=(999, 2))
    owner = Owner()
    encoder, _ = fitted(owner, X)
    ranks = X[:, 0].argsort().argsort()
    values = encoded(owner, encoder, X)["x_num"]
    assert list(encoded(owner, encoder, X)) == ["x_num", "beyond_range"]
    expected = np.clip(norm.ppf((ranks + 0.5) / 999), -3, 3)
    np.testing.assert_allclose(values[:, 0], expected, atol=1e-6)
    assert owner.n_features_in_ == 2


def test_frames_split_into_numbers_and_codes():
    owner = Owner()
    encoder, _ = fitted(owner, FRAME)
    assert list(owner.feature_names_in_) == list(FRAME)
    assert encoder.n_numeric == 2
    assert encoder.cardinalities == [4, 3, 3]  # unseen + known; a missing colour is known
    batch = encoded(owner, encoder, FRAME)
    assert batch["x_cat"].tolist() == [[2, 2, 2], [1, 1, 1], [3, 1, 2], [2, 2, 2]]
    assert np.isnan(batch["x_num"][2]).all()
    assert np.isfinite(batch["x_num"][[0, 1, 3]]).all()
    order = batch["x_num"][[0, 3, 1]]
    assert (np.diff(order[:, 0]) > 0).all()


def test_unseen_categories_are_code_zero():
    owner = Owner()
    encoder, _ = fitted(owner, FRAME)
    new = FRAME.iloc[:2].assign(colour=["green", "red"], size=["m", None])
    codes = encoded(owner, encoder, new)["x_cat"]  # two rows may be of a new category
    assert codes.tolist() == [[0, 0, 2], [2, 0, 1]]
    many = pd.concat([new] * 5)
    with pytest.warns(ColumnWarning, match="No value of column 'size' .* 'm' where fit had 'l'"):
        assert encoded(owner, encoder, many)["x_cat"].tolist() == codes.tolist() * 5


def test_columns_without_a_value_are_named():
    owner = Owner()
    encoder, _ = fitted(owner, FRAME)
    many = pd.concat([FRAME] * 3)
    with pytest.warns(ColumnWarning, match="no value in column 'age', 'size';"):
        encoded(owner, encoder, many.assign(age=np.nan, size=None))


def test_only_the_given_rows_teach():
    owner, encoder = Owner(), TableEncoder()
    frame = FRAME.assign(new=[True, False, True, False])
    with pytest.warns(
        ColumnWarning, match="rows of column 'colour', 'size': constant columns have"
    ):
        batch = arrays(encoder.fit_transform(owner, frame, np.array([0, 3])))
    assert encoder.cardinalities == [2, 2, 3]
    with pytest.warns(ColumnWarning):
        _, same = fitted(Owner(), frame.iloc[[0, 3]])
    np.testing.assert_array_equal(batch["x_num"], same["x_num"])
    # of the constant columns every value counts as the one that is known
    codes = encoded(owner, encoder, frame)["x_cat"]
    assert codes.tolist() == [[1, 1, 2], [1, 1, 1], [1, 1, 2], [1, 1, 1]]


def test_only_categories_or_an_empty_column():
    owner, X = Owner(), FRAME[["colour", "new"]]
    batch = fitted(owner, X)[1]
    assert batch["x_num"].shape == (4, 0)
    X = pd.DataFrame({"a": [np.nan, np.nan], "b": [1.0, 2.0]})
    owner = Owner()
    with pytest.warns(ColumnWarning, match="column 'a': constant columns have no effect"):
        encoder, batch = fitted(owner, X)
    assert np.isnan(batch["x_num"][:, 0]).all()
    for value in (5.0, "text"):
        later = encoded(owner, encoder, X.assign(a=value))
        np.testing.assert_array_equal(later["x_num"], batch["x_num"])


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.array([[1.0, np.nan]]), "contains NaN"),
        (pd.DataFrame({"a": [1.0, np.inf], "b": [1, 2]}), "infinity"),
        (pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])}), "'a' has dtype datetime64"),
        (FRAME.iloc[:0], "0 sample"),
    ],
)
def test_errors_in_fit(X, message):
    with pytest.raises(ValueError, match=message):
        fitted(Owner(), X)


def test_errors_in_transform():
    owner = Owner()
    encoder, _ = fitted(owner, FRAME)
    with pytest.raises(ValueError, match="fitted on categorical columns.*Give a data frame"):
        encoder.transform(owner, np.zeros((4, 5)))
    with pytest.raises(ValueError, match="feature names"):
        encoder.transform(owner, FRAME[["colour", "age", "count", "size", "new"]])
    with pytest.raises(ValueError, match="Column 'age' held numbers in fit, but could not convert"):
        encoder.transform(owner, FRAME.assign(age="old"))


@pytest.mark.parametrize(
    "X", [FRAME, FRAME[["age", "count"]], FRAME[["colour", "new"]], np.arange(12.0).reshape(6, 2)]
)
def test_an_encoder_comes_back_through_json(X):
    owner = Owner()
    encoder, _ = fitted(owner, X)
    state = encoder.to_state()
    loaded = TableEncoder.from_state(State(json.loads(json.dumps(state.config)), state.tensors))
    if isinstance(X, pd.DataFrame) and "colour" in X:
        X = X.assign(colour=["green", None, "red", "blue"])
    expected = encoded(owner, encoder, X)
    for name, values in encoded(owner, loaded, X).items():
        np.testing.assert_array_equal(values, expected[name])
    assert (loaded.n_numeric, loaded.cardinalities) == (encoder.n_numeric, encoder.cardinalities)


def test_categories_that_json_does_not_know_are_refused():
    X = pd.DataFrame({"when": pd.cut([1, 2, 3, 4], 2)})
    encoder, _ = fitted(Owner(), X)
    with pytest.raises(ValueError, match="category of type Interval.*astype"):
        encoder.to_state()
