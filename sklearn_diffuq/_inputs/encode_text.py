"""Texts -> token ids, by a tokenizer."""

from collections.abc import Mapping
from typing import Any

from sklearn_diffuq._inputs.columns import Ragged
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._inputs.table_columns import column_values, is_two_dimensional
from sklearn_diffuq._inputs.token_rows import check_ids

_OTHER_TOKENIZER = " Give the tokenizer that the model was trained with."


def encode_text(
    X: Any,
    tokenizer: Any,
    max_length: int | None = None,
    pad_id: int | None = None,
    limits: Mapping[str, int] | None = None,
) -> EncodedInputs:
    """Tokenise text.

    Parameters
    ----------
    X : list, tuple, 1-D array, Series or one-column array or DataFrame of str
        The texts; or pairs of them, as tuples or in two columns.
    tokenizer : Hugging Face tokenizer
        Token type ids are kept only if the tokenizer gives them.
    max_length : int, default=None
        Longer texts are cut at this number of tokens, special tokens included.
    pad_id : int, default=None
        Token id in padded places; None means the tokenizer's own, or its end-of-text token if it
        has none. It only has to be valid: the attention mask hides it.
    limits : dict of str to int, default=None
        Number of ids that the model knows, under the names of its inputs.

    Returns
    -------
    inputs : EncodedInputs
        Batches with ``input_ids`` and ``attention_mask``.
    """
    texts = _texts(X)
    if pad_id is None:
        pad_id = getattr(tokenizer, "pad_token_id", None)
    if pad_id is None:
        pad_id = getattr(tokenizer, "eos_token_id", None)
    if pad_id is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has neither a padding nor an end-of-text token. "
            "Set `tokenizer.pad_token`."
        )
    encoded = tokenizer(
        *texts,
        truncation=max_length is not None,
        max_length=max_length,
        return_attention_mask=False,
    )
    for row, ids in enumerate(encoded["input_ids"]):
        if len(ids) == 0:
            raise ValueError(
                f"The text at row {row}, {texts[0][row]!r}, has no token. Remove empty texts, or "
                "use a tokenizer that adds special tokens."
            )
    columns = {}
    for name, pad in (("input_ids", pad_id), ("token_type_ids", 0)):
        if name in encoded:
            limit = None if limits is None else limits.get(name)
            columns[name] = Ragged(check_ids(encoded[name], name, limit, _OTHER_TOKENIZER), pad)
    return EncodedInputs(columns, max_length)


def _texts(X: Any) -> list[list[str]]:
    """Return the texts, and in a second list what they are paired with, if anything."""
    if isinstance(X, str):
        raise TypeError("Got one str where a collection of texts is expected. Use `[text]`.")
    if is_two_dimensional(X):
        if X.shape[1] not in (1, 2):
            raise ValueError(
                f"Text has to be one column, or two of pairs, but X has {X.shape[1]}. Select the "
                "columns, for example with `X[['text']]`."
            )
        return [_text_list(column) for column in column_values(X)]
    rows = X.tolist() if hasattr(X, "tolist") else list(X)
    if rows and isinstance(rows[0], (tuple, list)):
        for row, pair in enumerate(rows):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError(
                    f"Row 0 is a pair of texts, but row {row} is {pair!r}. Give a pair in every "
                    "row, or a text in every row."
                )
        return [_text_list(column) for column in zip(*rows, strict=True)]
    return [_text_list(rows)]


def _text_list(X: Any) -> list[str]:
    """Return texts as a list of str, or say which row is not one."""
    texts = X.tolist() if hasattr(X, "tolist") else list(X)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"Every text must be a str, but row {row} is {text!r} of type "
                f"{type(text).__name__}. Fill missing texts with '' or drop them."
            )
    return texts
