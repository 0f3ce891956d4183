"""Tables -> numbers of unit scale and category codes, learned on the training rows."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.preprocessing import OrdinalEncoder, QuantileTransformer
from sklearn.utils import assert_all_finite, check_array
from sklearn.utils.validation import validate_data

from sklearn_diffuq._inputs.columns import Column, Dense
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._state import State, plain


def encode_table(x_num: ArrayLike, x_cat: ArrayLike | None = None) -> EncodedInputs:
    """Encode a numeric table, and the codes of categorical columns beside it.

    Parameters
    ----------
    x_num : ndarray of shape (n_rows, n_numeric)
        Numbers; they become float32 in a batch.
    x_cat : ndarray of shape (n_rows, n_categorical), default=None
        Integer codes of categories.

    Returns
    -------
    inputs : EncodedInputs
        Batches with ``x_num`` and, where given, ``x_cat``.
    """
    columns: dict[str, Column] = {"x_num": Dense(np.asarray(x_num, dtype=np.float32))}
    if x_cat is not None:
        columns["x_cat"] = Dense(np.asarray(x_cat, dtype=np.int32))
    return EncodedInputs(columns)


class TableEncoder:
    """Encode arrays and data frames for an FT-Transformer.

    Numbers are mapped to normal quantiles, which keeps heavy tails away from the network. Columns
    of dtype bool, category, str or object are categories. In data frames missing values are
    allowed: a missing number stays NaN, a missing category is a category of its own. In arrays NaN
    is an error.

    Parameters
    ----------
    seed : int
        Seed of the rows the quantiles are taken from, in large tables.

    Attributes
    ----------
    cardinalities : list of int
        Number of codes of each categorical column; code 0 means not seen in training.
    n_numeric : int
        Number of numeric columns.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit_transform(self, owner: BaseEstimator, X: Any, rows: np.ndarray) -> EncodedInputs:
        """Learn scales and categories from some rows of `X` and return these rows encoded.

        All rows are checked; the number and names of features are set on `owner`.
        """
        numbers, categories = self._read(owner, X, reset=True)
        numbers, categories = numbers[rows], categories[rows]
        self.n_numeric = numbers.shape[1]
        if self.n_numeric:
            n_quantiles = max(2, min(1000, len(numbers)))
            self._quantiles = _quantile_transformer(n_quantiles, self.seed).fit(
                np.where(np.isnan(numbers).all(axis=0), 0.0, numbers)
            )
        self.cardinalities = []
        if categories.shape[1]:
            self._ordinal = _ordinal_encoder().fit(categories)
            self.cardinalities = [len(known) + 1 for known in self._ordinal.categories_]
        return self._encode(numbers, categories)

    def transform(self, owner: BaseEstimator, X: Any) -> EncodedInputs:
        """Return the rows as `EncodedInputs`."""
        return self._encode(*self._read(owner, X, reset=False))

    def to_state(self) -> State:
        """Return the fitted encoder as a `State`.

        Raises
        ------
        ValueError
            If there are categories that JSON does not know.
        """
        config = {
            "seed": self.seed,
            "n_numeric": self.n_numeric,
            "cardinalities": self.cardinalities,
            "is_category": self._is_category.tolist(),
        }
        tensors = {}
        if self.n_numeric:
            tensors = {
                "quantiles": torch.from_numpy(self._quantiles.quantiles_),
                "references": torch.from_numpy(self._quantiles.references_),
            }
        if self.cardinalities:
            config["categories"] = [
                [_category(value) for value in known] for known in self._ordinal.categories_
            ]
        return State(config, tensors)

    @classmethod
    def from_state(cls, state: State) -> "TableEncoder":
        """Restore a fitted encoder."""
        config = state.config
        encoder = cls(config["seed"])
        encoder.n_numeric, encoder.cardinalities = config["n_numeric"], config["cardinalities"]
        encoder._is_category = np.array(config["is_category"], dtype=bool)
        if encoder.n_numeric:
            quantiles, references = (state.tensors[k].numpy() for k in ("quantiles", "references"))
            encoder._quantiles = _quantile_transformer(len(quantiles), encoder.seed)
            # scikit-learn has no constructor from what it has learned
            encoder._quantiles.quantiles_, encoder._quantiles.references_ = quantiles, references
            encoder._quantiles.n_quantiles_, encoder._quantiles.n_features_in_ = quantiles.shape
        if encoder.cardinalities:
            # fitted again, on rows that hold every category
            columns = [[np.nan if v is None else v for v in c] for c in config["categories"]]
            rows = np.empty((max(map(len, columns)), len(columns)), dtype=object)
            for j, known in enumerate(columns):
                rows[:, j] = (known * len(rows))[: len(rows)]
            encoder._ordinal = _ordinal_encoder().fit(rows)
        return encoder

    def _encode(self, numbers: np.ndarray, categories: np.ndarray) -> EncodedInputs:
        if self.n_numeric:
            # the extremes of the training rows would be at plus and minus 5.2
            numbers = np.clip(self._quantiles.transform(numbers), -3.0, 3.0)
        if not self.cardinalities:
            return encode_table(numbers)
        codes = self._ordinal.transform(categories)
        # a missing value is the last of its column's categories
        last = np.array(self.cardinalities) - 2
        return encode_table(numbers, np.where(np.isnan(codes), last, codes) + 1)

    def _read(self, owner: BaseEstimator, X: Any, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the numeric columns as float64 and the categorical ones as objects."""
        if not (hasattr(X, "iloc") and X.ndim == 2):
            if not reset and self.cardinalities:
                raise ValueError(
                    f"{type(owner).__name__} was fitted on a data frame with categorical columns, "
                    f"but got a {type(X).__name__}. Give a data frame with the same columns."
                )
            X = validate_data(owner, X, reset=reset, dtype=np.float64)
            if reset:
                self._is_category = np.zeros(X.shape[1], dtype=bool)
            return X, np.empty((len(X), 0), dtype=object)
        validate_data(owner, X, reset=reset, skip_check_array=True)
        if reset:
            self._is_category = np.array(
                [_is_category(X, j) for j in range(X.shape[1])], dtype=bool
            )
        numbers = X.iloc[:, ~self._is_category].to_numpy(dtype=np.float64, na_value=np.nan)
        categories = X.iloc[:, self._is_category].astype(object)
        categories = categories.where(categories.notna(), np.nan).to_numpy(dtype=object)
        for part in (numbers, categories):
            check_array(part, dtype=None, ensure_all_finite=False, ensure_min_features=0)
        assert_all_finite(numbers, allow_nan=True, input_name="X")
        return numbers, categories


def _quantile_transformer(n_quantiles: int, seed: int) -> QuantileTransformer:
    return QuantileTransformer(
        n_quantiles=n_quantiles, output_distribution="normal", random_state=seed
    )


def _ordinal_encoder() -> OrdinalEncoder:
    return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float64)


def _category(value: object) -> str | bool | int | float | None:
    """Return a category as JSON knows it; the missing one, NaN, is null."""
    known = plain(value)
    if known is None or isinstance(known, list):
        raise ValueError(
            f"A category of type {type(value).__name__} ({value!r}) cannot be saved; categories "
            "must be str, int, float or bool. Convert the column, for example by astype(str), "
            "before fit."
        )
    return None if known != known else known


def _is_category(X: Any, j: int) -> bool:
    """Tell whether a column holds categories, not numbers."""
    kind = X.dtypes.iloc[j].kind
    if kind in "iuf":
        return False
    if kind in "mMc":
        raise ValueError(
            f"Column {X.columns[j]!r} has dtype {X.dtypes.iloc[j]}; a column must hold numbers or "
            "categories. Convert it, for example to a number of days."
        )
    return True
