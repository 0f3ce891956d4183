"""User data (tables, text, images, mappings of arrays) -> `EncodedInputs`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils import assert_all_finite

from sklearn_diffuq._inputs.encoded_inputs import (
    Column,
    Dense,
    EncodedInputs,
    Images,
    Ragged,
    pixels_of,
)
from sklearn_diffuq._inputs.rows import refuse_sparse


def input_kind(X: Any) -> str:
    """Return "mapping", "text", "images" or "table", from the type of `X` alone."""
    refuse_sparse(X)
    if isinstance(X, Mapping):
        return "mapping"
    if isinstance(X, torch.Tensor):
        return "images" if X.ndim > 2 else "table"
    if isinstance(X, str):
        return "text"
    if hasattr(X, "dtypes") and getattr(X, "ndim", 0) == 2:  # a data frame
        return "text" if X.shape[1] == 1 and _is_str(X.iloc[:, 0]) else "table"
    if hasattr(X, "ndim") and X.ndim > 1:
        return "images" if X.ndim > 2 else "table"
    if not hasattr(X, "__iter__"):  # such as an object with nothing but __array__
        return input_kind(np.asarray(X))
    if _is_str(X):
        return "text"
    first = X[0] if isinstance(X, (list, tuple, np.ndarray)) and len(X) else None
    is_image = hasattr(first, "convert") or getattr(first, "ndim", 0) > 1
    return "images" if is_image else "table"


def _is_str(values: Any) -> bool:
    """Tell whether a one-dimensional collection starts with a str."""
    kind = getattr(getattr(values, "dtype", None), "kind", "O")
    if kind != "O":
        return kind in "UT" or "str" in str(values.dtype)
    return next((isinstance(v, str) for v in values if v is not None), False)


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


def encode_text(
    X: Any, tokenizer: Any, max_length: int | None = None, pad_id: int | None = None
) -> EncodedInputs:
    """Tokenise text.

    Parameters
    ----------
    X : list, tuple, 1-D array, Series or one-column DataFrame of str
        The texts.
    tokenizer : Hugging Face tokenizer
        Token type ids are kept only if the tokenizer gives them.
    max_length : int, default=None
        Longer texts are cut at this number of tokens, special tokens included.
    pad_id : int, default=None
        Token id in padded places; None means the tokenizer's own, or its end-of-text token if it
        has none. It only has to be valid: the attention mask hides it.

    Returns
    -------
    inputs : EncodedInputs
        Batches with ``input_ids`` and ``attention_mask``.
    """
    texts = _text_list(X)
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
        texts, truncation=max_length is not None, max_length=max_length, return_attention_mask=False
    )
    columns = {}
    for name, pad in (("input_ids", pad_id), ("token_type_ids", 0)):
        if name in encoded:
            columns[name] = Ragged([np.asarray(r, dtype=np.int32) for r in encoded[name]], pad)
    lengths = columns["input_ids"].lengths
    if (lengths == 0).any():
        row = int(np.flatnonzero(lengths == 0)[0])
        raise ValueError(
            f"The text at row {row}, {texts[row]!r}, has no token. Remove empty texts, or use a "
            "tokenizer that adds special tokens."
        )
    return EncodedInputs(columns, max_length)


def _text_list(X: Any) -> list[str]:
    """Return the texts as a list of str, or say which row is not one."""
    if isinstance(X, str):
        raise TypeError("Got one str where a collection of texts is expected. Use `[text]`.")
    if getattr(X, "ndim", 1) == 2:
        if X.shape[1] != 1:
            raise ValueError(
                f"Text has to be one column, but X has {X.shape[1]}. Select the column, for "
                "example with `X['text']`."
            )
        X = X.iloc[:, 0] if hasattr(X, "iloc") else X[:, 0]
    texts = X.tolist() if hasattr(X, "tolist") else list(X)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"Every text must be a str, but row {row} is {text!r} of type "
                f"{type(text).__name__}. Fill missing texts with '' or drop them."
            )
    return texts


def encode_images(
    X: Any,
    transform: Callable | None = None,
    n_channels: int | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> EncodedInputs:
    """Encode images as pixels of shape (n_channels, height, width).

    Parameters
    ----------
    X : array or tensor of shape (n, C, H, W), (n, H, W, C) or (n, H, W), or list of images
        Without `transform`, float values are taken as they are and uint8 values are divided by 255;
        the channel axis is the one of size `n_channels`. PIL images need a `transform`.
    transform : callable or Hugging Face image processor, default=None
        Maps one image to an array or tensor of shape (C, H, W). It runs per batch, never for the
        whole set.
    n_channels : int, default=None
        Channels that the model expects; None means unknown, and the array is not rearranged.
    image_size : int or tuple of (int, int), default=None
        Height and width in pixels that the model expects; None means any.

    Returns
    -------
    inputs : EncodedInputs
        Batches with ``pixel_values``.
    """
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu().numpy()
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if transform is not None:
        items = X if hasattr(X, "ndim") else list(X)
        if len(items):
            _check_image_shape(
                pixels_of(items[0], transform).shape, n_channels, size, "The transform"
            )
        return EncodedInputs({"pixel_values": Images(items, transform)})
    array = _image_array(X)
    assert_all_finite(array, input_name="X")
    if n_channels is not None:
        array = _channels_first(array, n_channels, size)
        _check_image_shape(array.shape[1:], n_channels, size, "X")
    scale = 1 / 255 if array.dtype == np.uint8 else None
    return EncodedInputs({"pixel_values": Dense(array, scale)})


def _image_array(X: Any) -> np.ndarray:
    """Stack images given without a transform; PIL images are refused."""
    if not hasattr(X, "ndim") or X.dtype == object:
        items = list(X)
        if any(hasattr(item, "convert") for item in items):
            raise ValueError(
                "Got PIL images without a transform. Pass `preprocessor=`, a callable that maps an "
                "image to an array of shape (channels, height, width), or an image processor."
            )
        items = [np.asarray(item) for item in items]
        shapes = sorted({item.shape for item in items})
        if len(shapes) > 1:
            raise ValueError(
                f"Images have different shapes {shapes[:3]}. Pass `preprocessor=`, a callable that "
                "resizes them."
            )
        X = np.stack(items)
    array = np.asarray(X)
    if array.dtype.kind not in "fuib":
        raise ValueError(f"Images must be numbers, got an array of dtype {array.dtype}.")
    return array


def _channels_first(array: np.ndarray, n_channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """Return a view of shape (n, C, H, W); the channel axis is the one that fits the model."""
    if array.ndim == 3 and n_channels == 1:
        array = array[:, None]
    if array.ndim != 4:
        raise ValueError(
            f"Images must be an array of shape (n, {n_channels}, height, width) or "
            f"(n, height, width, {n_channels}), got shape {array.shape}."
        )
    first, last = array, array.transpose(0, 3, 1, 2)
    fits = [view for view in (first, last) if view.shape[1] == n_channels]
    if len(fits) == 2 and size is not None:
        fits = [view for view in fits if view.shape[2:] == tuple(size)]
    if len(fits) == 2:
        raise ValueError(
            f"Images of shape {array.shape}: axis 1 and axis 3 both have the {n_channels} channels "
            "that the model expects. Pass `preprocessor=`, a callable that maps an image to an "
            "array of shape (channels, height, width)."
        )
    return fits[0] if fits else first


def _check_image_shape(
    shape: Sequence[int], n_channels: int | None, size: tuple[int, int] | None, what: str
) -> None:
    """Raise unless one image has the shape that the model expects."""
    bad_channels = n_channels is not None and (len(shape) != 3 or shape[0] != n_channels)
    if bad_channels or (size is not None and tuple(shape[-2:]) != tuple(size)):
        height, width = size or ("height", "width")
        raise ValueError(
            f"{what} gives images of shape {tuple(shape)}, but the model expects "
            f"({'channels' if n_channels is None else n_channels}, {height}, {width}). Resize or "
            "convert the images, for example in `preprocessor=`."
        )


def encode_mapping(X: Mapping, max_length: int | None = None, pad_id: int = 0) -> EncodedInputs:
    """Encode a mapping of equal-length arrays, such as the output of a tokenizer.

    Parameters
    ----------
    X : dict, BatchEncoding or SliceDict
        One array (or list) for each model input. With ``input_ids``, only the places where
        ``attention_mask`` is 1 are kept: padding is redone, on the right.
    max_length : int, default=None
        Longest sequence that the model can read; a longer row is an error.
    pad_id : int, default=0
        Token id in padded places; hidden by the attention mask.

    Returns
    -------
    inputs : EncodedInputs
        Batches with the names of the mapping.
    """
    values = {str(name): _mapping_values(value, name) for name, value in X.items()}
    if not values:
        raise ValueError("The mapping is empty; it needs at least one named array.")
    counts = {name: len(value) for name, value in values.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"The arrays of the mapping have different numbers of rows: {counts}.")
    if "input_ids" not in values:
        return EncodedInputs({name: Dense(np.asarray(v)) for name, v in values.items()})
    spans = _token_spans(values["input_ids"], values.pop("attention_mask", None))
    columns: dict[str, Column] = {}
    for name, value in values.items():
        if all(np.shape(v) == np.shape(ids) for v, ids in zip(value, values["input_ids"])):
            items = [np.asarray(v[a:b], dtype=np.int32) for v, (a, b) in zip(value, spans)]
            columns[name] = Ragged(items, pad_id if name == "input_ids" else 0)
        else:
            columns[name] = Dense(np.asarray(value))
    longest = max((b - a for a, b in spans), default=0)
    if max_length is not None and longest > max_length:
        raise ValueError(
            f"The mapping has a row of {longest} tokens, but the model reads at most {max_length}. "
            "Tokenise with truncation."
        )
    return EncodedInputs(columns, max_length)


def _mapping_values(value: Any, name: str) -> np.ndarray | list[np.ndarray]:
    """Return one entry of a mapping as an array, or as a list where its rows are ragged."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (list, tuple)) and len({np.shape(v) for v in value}) > 1:
        return [np.asarray(v) for v in value]
    value = np.asarray(value)
    if value.ndim == 0 or value.dtype.kind not in "fuib":
        raise ValueError(
            f"The mapping's entry {name!r} must be an array of numbers with one row per sample, "
            f"got dtype {value.dtype} and shape {value.shape}."
        )
    assert_all_finite(value, input_name=f"X[{name!r}]")
    return value


def _token_spans(
    ids: Sequence[Any] | np.ndarray, mask: Sequence[Any] | np.ndarray | None
) -> list[tuple[int, int]]:
    """Return (start, stop) of the real tokens in each row."""
    if mask is None:
        return [(0, len(row)) for row in ids]
    spans = []
    for row, keep in enumerate(mask):
        places = np.flatnonzero(keep)
        if len(places) == 0 or places[-1] - places[0] + 1 != len(places):
            raise ValueError(
                f"The attention mask of row {row} must be one run of ones, got {list(keep)[:8]}..."
            )
        spans.append((int(places[0]), int(places[-1]) + 1))
    return spans
