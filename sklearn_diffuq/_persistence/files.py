"""The two files of a saved classifier: config.json and tensors.safetensors, without pickle.

Reading runs no code from the directory.
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

import sklearn_diffuq
from sklearn_diffuq._persistence.old_formats import upgrade
from sklearn_diffuq._state import State

FORMAT = "sklearn_diffuq.DiffusionCalibratedClassifier"
FORMAT_VERSION = 2
CONFIG, TENSORS = "config.json", "tensors.safetensors"


def check_writable(directory: Path) -> None:
    """Refuse a directory that holds anything but an earlier save."""
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


def write(directory: Path, state: State) -> None:
    """Write both files under other names first: a failure leaves an earlier save as it is."""
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": sklearn_diffuq.__version__,
        **state.config,
    }
    # cloned, since safetensors refuses tensors that share memory, as tied weights do
    tensors = {
        name: value.detach().cpu().contiguous().clone() for name, value in state.tensors.items()
    }
    text = json.dumps(config, indent=1, default=_json)
    directory.mkdir(parents=True, exist_ok=True)
    new_tensors, new_config = directory / (TENSORS + ".new"), directory / (CONFIG + ".new")
    save_file(tensors, new_tensors)
    new_config.write_text(text, encoding="utf-8")
    os.replace(new_tensors, directory / TENSORS)
    os.replace(new_config, directory / CONFIG)


def read(directory: Path) -> State:
    """Return what `write` has written, by this version or by an earlier one."""
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
    version = config.get("format_version")
    if version not in range(1, FORMAT_VERSION + 1):
        raise ValueError(
            f"'{directory}' has format version {version!r} (written by sklearn_diffuq "
            f"{config.get('package_version')}), but sklearn_diffuq {sklearn_diffuq.__version__} "
            f"reads versions up to {FORMAT_VERSION}. Load it with the version it was written by, "
            "or fit again."
        )
    state = State(config, load_file(directory / TENSORS))
    return state if version == FORMAT_VERSION else upgrade(state)


def _json(value: Any) -> Any:
    """Return what JSON does not know, such as NumPy scalars in the history."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
