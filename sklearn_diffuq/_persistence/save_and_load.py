"""A fitted classifier as a directory: config.json and tensors.safetensors, without pickle.

Loading runs no code from the directory. A table model is stored whole. Of any other wrapped model
only its name, its readout and a fingerprint are stored: it is loaded by its name or given to
`load`, and refused if it is not the one that was saved.
"""

import json
import os
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

import sklearn_diffuq
from sklearn_diffuq._fit_path import FittedPath
from sklearn_diffuq._persistence.path_state import (
    _calibration_state,
    _load_calibrations,
    _load_path,
    _path_state,
)
from sklearn_diffuq._persistence.wrapped_state import (
    column_names,
    load_wrapped,
    part,
    plain,
    wrapped_state,
)

FORMAT = "sklearn_diffuq.DiffusionCalibratedClassifier"
FORMAT_VERSION = 1
CONFIG, TENSORS = "config.json", "tensors.safetensors"
_LABEL_KINDS = {str: "str", bool: "bool", int: "int", float: "float"}


class PersistenceMixin:
    """`save` and `load` of `DiffusionCalibratedClassifier`."""

    def save(self, directory):
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
        directory = Path(directory)
        _check_writable(directory)
        wrapped_config, wrapped_tensors = wrapped_state(
            self.wrapped_, with_weights=self.readout == "finetune"
        )
        path_config, path_tensors = _path_state(self._path)
        calibration_config, tables = _calibration_state(self._calibrations)
        config = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "package_version": sklearn_diffuq.__version__,
            "params": {name: plain(v) for name, v in self.get_params(deep=False).items()},
            "estimator_given_as": _given_as(self.estimator),
            "classes": _encode_labels(self.classes_),
            "n_features_in": getattr(self, "n_features_in_", None),
            "feature_names_in": column_names(self),
            "n_blocks": self.n_blocks_,
            "n_block_parameters": self.n_block_parameters_,
            "grids": [list(grid) for grid in self._grids.values()],
            "rank": self.rank_,
            "path": path_config,
            "calibration": calibration_config,
            "seed": self._seed,
            "history": self.history_,
            "wrapped": wrapped_config,
        }
        tensors = _prefixed("path", path_tensors) | _prefixed("wrapped", wrapped_tensors)
        tensors |= _prefixed("calibration", tables)
        _write(directory, json.dumps(config, indent=1, default=_json), tensors)

    @classmethod
    def load(cls, directory, estimator=None):
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
        config, tensors = _read(Path(directory))
        classes = np.array(config["classes"]["values"], dtype=config["classes"]["dtype"])
        wrapped = load_wrapped(config["wrapped"], part(tensors, "wrapped"), classes, estimator)
        params = config["params"]
        if estimator is not None:
            params["estimator"] = estimator
        elif config["estimator_given_as"] == "frozen":
            params["estimator"] = FrozenEstimator(wrapped)
        elif config["estimator_given_as"] == "estimator":
            params["estimator"] = clone(wrapped)
        fitted = FittedPath(
            _load_path(config["path"], part(tensors, "path"), wrapped.backbone_),
            {len(grid) - 1: tuple(grid) for grid in config["grids"]},
            _load_calibrations(config["calibration"], part(tensors, "calibration")),
            config["rank"],
            config["history"],
        )
        loaded = cls(**params)
        loaded._set_fitted(wrapped, fitted, config["seed"])
        return loaded


# The two files ----------------------------------------------------------------------------------


def _check_writable(directory):
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"'{directory}' is a file; save needs a directory.")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    try:
        is_ours = json.loads((directory / CONFIG).read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise ValueError(
            f"'{directory}' is not empty and holds no classifier saved before, which alone is "
            "replaced. Give a new or an empty directory."
        )


def _write(directory, config, tensors):
    """Write both files under other names first: a failure leaves an earlier save as it is."""
    directory.mkdir(parents=True, exist_ok=True)
    new_tensors, new_config = directory / (TENSORS + ".new"), directory / (CONFIG + ".new")
    save_file(tensors, new_tensors)
    new_config.write_text(config, encoding="utf-8")
    os.replace(new_tensors, directory / TENSORS)
    os.replace(new_config, directory / CONFIG)


def _read(directory):
    for name in (CONFIG, TENSORS):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"'{directory}' has no {name}. Give a directory that "
                "DiffusionCalibratedClassifier.save has written."
            )
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(
            f"'{directory}' was not written by DiffusionCalibratedClassifier.save: its {CONFIG} "
            f"does not say format {FORMAT!r}."
        )
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"'{directory}' has format version {config.get('format_version')!r} (written by "
            f"sklearn_diffuq {config.get('package_version')}), but sklearn_diffuq "
            f"{sklearn_diffuq.__version__} reads version {FORMAT_VERSION} only. Load it with the "
            "version it was written by, or fit again."
        )
    return config, load_file(directory / TENSORS)


def _prefixed(prefix, tensors):
    # cloned, since safetensors refuses tensors that share memory, as tied weights do
    return {
        f"{prefix}.{name}": value.detach().cpu().contiguous().clone()
        for name, value in tensors.items()
    }


# Values -----------------------------------------------------------------------------------------


def _json(value):
    """Return what JSON does not know, such as NumPy scalars in the history."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _encode_labels(labels):
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


def _given_as(estimator):
    if isinstance(estimator, FrozenEstimator):
        return "frozen"
    return "estimator" if hasattr(estimator, "get_params") else None
