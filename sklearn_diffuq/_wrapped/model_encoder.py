"""From what the user gives to what a pre-trained model reads."""

import inspect
from collections.abc import Mapping

import numpy as np
import torch
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from sklearn_diffuq._backbones.calling import call_model, goes_by_order
from sklearn_diffuq._backbones.freezing import frozen
from sklearn_diffuq._backbones.loading import ModelInputs
from sklearn_diffuq._inputs.dataset_rows import DatasetRows, rows_and_labels
from sklearn_diffuq._inputs.encode_images import encode_images, wrong_shape
from sklearn_diffuq._inputs.encode_mapping import encode_mapping
from sklearn_diffuq._inputs.encode_text import encode_text
from sklearn_diffuq._inputs.image_files import file_names
from sklearn_diffuq._inputs.input_kind import input_kind
from sklearn_diffuq._inputs.table_encoder import encode_table


class ModelEncoder:
    """Encode text, images, tables and mappings for a model.

    Parameters
    ----------
    model : torch.nn.Module
        Its configuration says what it can read.
    preprocessor : tokenizer, callable or None
        A tokenizer for text, a transform for images.
    max_length : int or None
        Longest text in tokens; None means the most that tokenizer and model can read.

    Attributes
    ----------
    order : list of str or None
        Names of the inputs of `fit`, if the model gets them by position.
    pad_left : bool
        Whether texts are padded on the left.
    """

    def __init__(self, model, preprocessor, max_length):
        self.name = type(model).__name__
        self.reads = ModelInputs.of(model)
        self.preprocessor, self.max_length = preprocessor, max_length
        self.order, self.pad_left = None, False

    def fit_transform(self, owner, X):
        """Return the samples as `EncodedInputs`; the features of a table are set on `owner`."""
        return self._encode(owner, X, reset=True)

    def transform(self, owner, X):
        """Return the samples as `EncodedInputs`."""
        return self._encode(owner, X, reset=False)

    def _encode(self, owner, X, reset):
        X, reads = _samples(X), self.reads
        kind = self._kind(X)
        if kind == "mapping":
            inputs = encode_mapping(X, reads.max_length, reads.pad_id or 0, reads.n_ids)
        elif kind == "text" or (kind == "files" and self.preprocessor is None):
            longest = self._longest_text()
            inputs = encode_text(X, self._tokenizer(), longest, reads.pad_id, reads.n_ids)
        elif reads.kind == "text" or _is_tokenizer(self.preprocessor):
            raise ValueError(
                f"{self.name} reads text, but X is a {type(X).__name__} of {kind}. Give a "
                "collection of str, or a mapping with `input_ids`."
            )
        elif reads.kind == "images" or kind in ("images", "files") or self.preprocessor is not None:
            X = file_names(X) if kind == "files" else X
            inputs = encode_images(X, self.preprocessor, reads.n_channels, reads.image_size)
            self._check_size(owner.module_, inputs)
        else:
            inputs = encode_table(validate_data(owner, X, reset=reset, dtype=np.float32))
        if len(inputs) == 0:
            raise ValueError("Found input with 0 sample(s) while a minimum of 1 is required.")
        inputs = inputs.padded_left() if self.pad_left else inputs
        if goes_by_order(owner.module_, inputs.names):
            return self._ordered(owner.module_, X if kind == "mapping" else {}, inputs, reset)
        return inputs

    def _kind(self, X):
        """Return the `input_kind`; what a model of images gets as text are names of files."""
        kind, preprocessor = input_kind(X), self.preprocessor
        is_transform = preprocessor is not None and not _is_tokenizer(preprocessor)
        return "files" if kind == "text" and is_transform and self.reads.kind != "text" else kind

    def _check_size(self, module, inputs):
        """Refuse images of another size than the model names, unless it reads them all the same."""
        size, device = self.reads.image_size, next(module.parameters()).device
        if size is None or len(inputs) == 0:
            return
        batch = inputs.batch([0, 0], device=device)
        shape = batch["pixel_values"].shape[1:]
        if tuple(shape[-2:]) == tuple(size):
            return
        try:
            with frozen(module, [module]), torch.no_grad():
                call_model(module, batch)
        except Exception as error:  # whatever a model raises
            raise wrong_shape(shape, self.reads.n_channels, size, "X") from error

    def _ordered(self, module, X, inputs, reset):
        """Return inputs that the model gets by position in the order of the mapping of `fit`."""
        name, names = type(module).__name__, inputs.names
        if not set(names) <= set(map(str, X)):
            raise ValueError(
                f"{name}.forward{inspect.signature(module.forward)} gets the inputs "
                f"{', '.join(names)} by position, and their order is not a choice to guess. Give a "
                "mapping with the names of the parameters, or one of all these inputs in the order "
                "of the parameters."
            )
        if reset or self.order is None:
            self.order = names
        if set(names) != set(self.order):
            raise ValueError(
                f"{name} gets its inputs by position: it was fitted with {', '.join(self.order)}, "
                f"but X has {', '.join(names)}. Give the same inputs as in fit."
            )
        return inputs.in_order(self.order)

    def _tokenizer(self):
        if not _is_tokenizer(self.preprocessor):
            raise ValueError(
                "X is text, but there is no tokenizer to read it: preprocessor is "
                f"{self.preprocessor!r}. Pass `preprocessor=`, the model's tokenizer or the "
                "directory to load it from; for names of image files, what makes pixels of images."
            )
        return self.preprocessor

    def _longest_text(self):
        limits = (self.max_length, self.reads.max_length, self._tokenizer().model_max_length)
        shortest = min(limit for limit in limits if limit is not None)
        return shortest if shortest < 2**31 else None  # a tokenizer without a limit says 1e30


def _samples(X):
    """Return the samples of a dataset, and others as they are; refuse none at all."""
    X, _ = rows_and_labels(X)
    X = X.samples() if isinstance(X, DatasetRows) else X
    if not isinstance(X, Mapping) and getattr(X, "ndim", 1) != 2 and hasattr(X, "__len__"):
        check_array(np.zeros(min(len(X), 1)), ensure_2d=False)  # raises scikit-learn's message
    return X


def _is_tokenizer(preprocessor):
    """Tell a tokenizer from an image transform, without importing transformers."""
    return hasattr(preprocessor, "model_max_length")
