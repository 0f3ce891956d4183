"""Images in files."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from sklearn_diffuq._inputs.not_finite import UnreadableError
from sklearn_diffuq._inputs.table_columns import column_values, is_two_dimensional

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of PIL, by the number of channels


def is_file_name(item: Any) -> bool:
    """Tell whether an image is given by the name of its file."""
    return isinstance(item, (str, os.PathLike))


def file_names(X: Any) -> list[str]:
    """Return names of files, in a collection or in one column, as a list of str.

    Raises
    ------
    UnreadableError
        If one of them is no file; it names the row.
    """
    if isinstance(X, str):
        raise TypeError(f"Got one name of a file, {X!r}, where several are expected. Use `[name]`.")
    items: Iterable[Any] = column_values(X)[0] if is_two_dimensional(X) else X
    names = [os.fspath(item) if is_file_name(item) else repr(item) for item in items]
    missing = np.array([row for row, name in enumerate(names) if not os.path.isfile(name)], int)
    if len(missing):
        raise UnreadableError(
            missing,
            f"The model reads images, and there is no file {names[missing[0]]!r}. Give the images, "
            "or names of files that can be found from the working directory.",
        )
    return names


def open_image(name: str | os.PathLike[str], n_channels: int | None) -> Any:
    """Return a PIL image with the channels of the model, three if it does not say."""
    from PIL import Image

    with Image.open(name) as image:
        return image.convert(MODES.get(n_channels or 3, "RGB"))
