"""Saving a fitted classifier, and loading it again.

A table model is stored whole. Of any other wrapped model only its name, its readout and a
fingerprint are stored: it is loaded by its name or given to `load`, and refused if it is not the
one that was saved.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from sklearn_diffuq._fitted_path import FittedPath
from sklearn_diffuq._inputs.torch_state import own_torch_state
from sklearn_diffuq._persistence.files import check_writable, read, write
from sklearn_diffuq._persistence.wrapped_state import load_wrapped, wrapped_state
from sklearn_diffuq._state import State, plain
from sklearn_diffuq._wrapped.backbone_classifier import BackboneClassifier

_LABEL_KINDS = {str: "str", bool: "bool", int: "int", float: "float"}


class PersistenceMixin:
    """`save` and `load` of `DiffusionCalibratedClassifier`, which has the rest."""

    estimator: Any
    classes_: NDArray[Any]
    wrapped_: BackboneClassifier
    _fitted: FittedPath
    get_params: Callable[..., dict[str, Any]]
    _set_fitted: Callable[[BackboneClassifier, FittedPath], None]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Save the fitted classifier as two files, config.json and tensors.safetensors.

        A :class:`FTTransformerClassifier` inside is saved whole, and so are the weights of a
        fine-tuned :class:`TransformerClassifier`. Of other wrapped models only name and readout
        are saved, beside what recognises them. No training rows are saved; the Gaussian processes
        keep descriptions of hidden states.

        Parameters
        ----------
        directory : str or path-like
            Created if needed. A directory that is not empty must hold an earlier save, which is
            replaced.

        Raises
        ------
        NotFittedError
            If the classifier is not fitted.
        ValueError
            If the directory holds other files, or labels or categories are of a type that JSON
            does not know.
        """
        check_is_fitted(self)
        check_writable(Path(directory))
        config = {
            "params": {name: plain(v) for name, v in self.get_params(deep=False).items()},
            "estimator_given_as": _given_as(self.estimator),
            "classes": _encode_labels(self.classes_),
        }
        state = State(config).with_parts(
            wrapped=wrapped_state(self.wrapped_), fitted=self._fitted.to_state()
        )
        write(Path(directory), state)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], estimator: Any = None) -> Self:
        """Load a classifier that `save` wrote; on the same machine it predicts the same bits.

        Parameters
        ----------
        directory : str or path-like
            What was given to `save`.
        estimator : estimator, torch.nn.Module or str, default=None
            The wrapped model, where it is not a :class:`FTTransformerClassifier` and was not given
            by name: the torch model or its new name or path; a :class:`TransformerClassifier` with
            model and `preprocessor`, where that was an object; or the fitted wrapped classifier,
            bare or in a :class:`~sklearn.frozen.FrozenEstimator`. It is not trained.

        Returns
        -------
        classifier : DiffusionCalibratedClassifier
            Fitted. Parameters that JSON does not know, such as `callbacks`, are None.

        Raises
        ------
        FileNotFoundError
            If there is no saved classifier.
        ValueError
            If the directory is of another kind or format version, or if the wrapped model is
            missing or is not the one that was saved.
        """
        with own_torch_state():
            state = read(Path(directory))
            config = state.config
            classes = np.array(config["classes"]["values"], dtype=config["classes"]["dtype"])
            wrapped = load_wrapped(state.part("wrapped"), classes, estimator)
            params = dict(config["params"])
            if estimator is not None:
                params["estimator"] = estimator
            elif config["estimator_given_as"] == "frozen":
                params["estimator"] = FrozenEstimator(wrapped)
            elif config["estimator_given_as"] == "estimator":
                params["estimator"] = clone(wrapped)
            loaded = cls(**params)
            loaded._set_fitted(
                wrapped, FittedPath.from_state(state.part("fitted"), wrapped.backbone_)
            )
        return loaded


def _encode_labels(labels: NDArray[Any]) -> dict[str, Any]:
    values = labels.tolist()
    kinds = {type(value) for value in values}
    kind = _LABEL_KINDS.get(kinds.pop()) if len(kinds) == 1 else None
    if kind is None:
        raise ValueError(
            f"Labels of type {type(values[0]).__name__} ({values[:5]}) cannot be saved; they must "
            "all be str, all be int, all be float or all be bool. Convert them before fit."
        )
    dtype = labels.dtype.str if labels.dtype.kind in "UOiufb" else "O"
    return {"kind": kind, "dtype": dtype, "values": values}


def _given_as(estimator: object) -> str | None:
    if isinstance(estimator, FrozenEstimator):
        return "frozen"
    return "estimator" if hasattr(estimator, "get_params") else None
