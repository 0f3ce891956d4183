"""Images -> pixels of shape (channels, height, width)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from sklearn_diffuq._inputs.columns import Dense, Images
from sklearn_diffuq._inputs.dataset_rows import DatasetRows
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._inputs.not_finite import UnreadableError, check_float32


def encode_images(
    X: Any,
    transform: Callable | None = None,
    n_channels: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> EncodedInputs:
    """Encode images as pixels of shape (n_channels, height, width).

    Parameters
    ----------
    X : array or tensor of shape (n, C, H, W), (n, H, W, C) or (n, H, W), or list of images
        Without `transform`, float values are taken as they are and uint8 values are divided by 255;
        the channel axis is the one of size `n_channels`. PIL images need a `transform`. With one,
        images may be given by the names of their files.
    transform : callable or Hugging Face image processor, default=None
        Maps one image to an array or tensor of shape (C, H, W). It runs per batch, never for the
        whole set.
    n_channels : int, default=None
        Channels that the model expects; None means unknown, and the array is not rearranged.
    image_size : tuple of (int, int), default=None
        Height and width in pixels that tell the channel axis where both axes fit.

    Returns
    -------
    inputs : EncodedInputs
        Batches with ``pixel_values``.
    """
    if transform is None and isinstance(X, DatasetRows) and not hasattr(X[0], "convert"):
        transform = _as_they_are
    if transform is not None:
        items = X if hasattr(X, "ndim") or isinstance(X, DatasetRows) else list(X)
        items = items.detach().cpu().numpy() if isinstance(items, torch.Tensor) else items
        images = Images(items, transform, n_channels)
        what = "X" if transform is _as_they_are else "The transform"
        if images.shape is not None:
            _check_channels(images.shape, n_channels, image_size, what)
        return EncodedInputs({"pixel_values": images})
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu().numpy()
    array = _image_array(X)
    check_float32(array, "X")
    if n_channels is not None:
        array = _channels_first(array, n_channels, image_size)
        _check_channels(array.shape[1:], n_channels, image_size, "X")
    scale = 1 / 255 if array.dtype == np.uint8 else None
    return EncodedInputs({"pixel_values": Dense(array, scale)})


def _as_they_are(image: Any) -> torch.Tensor:
    """Return the pixels of an image of a data set."""
    pixels = torch.as_tensor(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    return pixels / 255 if pixels.dtype == torch.uint8 else pixels


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
        other = [row for row, item in enumerate(items) if item.shape != items[0].shape]
        if other:
            raise UnreadableError(
                np.array(other),
                f"Images have different shapes: {items[other[0]].shape} instead of "
                f"{items[0].shape}, that of row 0. Pass `preprocessor=`, a callable that makes "
                "pixels of one shape of them.",
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


def _check_channels(
    shape: Sequence[int], n_channels: int | None, size: tuple[int, int] | None, what: str
) -> None:
    """Raise unless one image has the channels that the model expects."""
    if n_channels is not None and (len(shape) != 3 or shape[0] != n_channels):
        raise wrong_shape(shape, n_channels, size, what)


def wrong_shape(
    shape: Sequence[int], n_channels: int | None, size: tuple[int, int] | None, what: str
) -> ValueError:
    """Return the error for images of a shape that the model does not read."""
    height, width = size or ("height", "width")
    return ValueError(
        f"{what} gives images of shape {tuple(shape)}, but the model expects "
        f"({'channels' if n_channels is None else n_channels}, {height}, {width}). Resize or "
        "convert the images, for example in `preprocessor=`."
    )
