"""The columns of encoded inputs: each makes its tensor when a batch is cut."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sklearn_diffuq._inputs.dataset_rows import DatasetRows
from sklearn_diffuq._inputs.image_files import is_file_name, open_image
from sklearn_diffuq._inputs.not_finite import UnreadableError


class Column(Protocol):
    """One model input of all samples."""

    @property
    def lengths(self) -> np.ndarray | None:
        """Token count of each sample, None unless it is ragged text."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> "Column":
        """Return the given rows, in the given order."""
        ...

    def tensor(self, rows: np.ndarray, length: int | None) -> Tensor:
        """Return the given rows as a tensor, ragged text padded to `length` tokens."""
        ...


class Dense:
    """Rows of one array; floats become float32 and integers int64 when a batch is made."""

    lengths: np.ndarray | None = None

    def __init__(self, array: np.ndarray, scale: float | None = None) -> None:
        self.array, self.scale = array, scale

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: np.ndarray) -> "Dense":
        return Dense(self.array[rows], self.scale)

    def tensor(self, rows: np.ndarray, length: int | None) -> Tensor:
        values = self.array[rows]
        kinds = {"f": np.float32, "u": np.int64, "i": np.int64, "b": np.bool_}
        tensor = torch.from_numpy(values.astype(kinds[values.dtype.kind], order="C"))
        return tensor if self.scale is None else tensor * self.scale


class Ragged:
    """Values of tokens, a different number in each row, padded on one side in a batch.

    Items have the shape (t, ...). They become float32 if any of them holds floats, else int64.
    """

    def __init__(
        self,
        items: list[np.ndarray],
        pad: int,
        *,
        dtype: type | None = None,
        pad_left: bool = False,
    ) -> None:
        self.items, self.pad, self.pad_left = items, pad, pad_left
        is_float = any(item.dtype.kind == "f" for item in items)
        self.dtype = dtype or (np.float32 if is_float else np.int64)
        self.lengths = np.fromiter((len(item) for item in items), dtype=np.int64, count=len(items))

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: np.ndarray) -> "Ragged":
        items = [self.items[i] for i in rows]
        return Ragged(items, self.pad, dtype=self.dtype, pad_left=self.pad_left)

    def padded_left(self) -> "Ragged":
        """Return the same values, padded on the left."""
        return Ragged(self.items, self.pad, dtype=self.dtype, pad_left=True)

    def tensor(self, rows: np.ndarray, length: int | None) -> Tensor:
        length = max(len(self.items[i]) for i in rows) if length is None else length
        trailing = self.items[rows[0]].shape[1:]
        padded = np.full((len(rows), length, *trailing), self.pad, dtype=self.dtype)
        for out, i in zip(padded, rows):
            n_tokens = len(self.items[i])
            out[slice(length - n_tokens, None) if self.pad_left else slice(n_tokens)] = self.items[
                i
            ]
        return torch.from_numpy(padded)


class Mask:
    """The attention mask of ragged columns: 1 for a token, 0 for padding."""

    def __init__(self, lengths: np.ndarray, pad_left: bool = False) -> None:
        self.lengths, self.pad_left = lengths, pad_left

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: np.ndarray) -> "Mask":
        return Mask(self.lengths[rows], self.pad_left)

    def padded_left(self) -> "Mask":
        """Return the mask of values that are padded on the left."""
        return Mask(self.lengths, pad_left=True)

    def tensor(self, rows: np.ndarray, length: int | None) -> Tensor:
        lengths = self.lengths[rows, None]
        mask = np.arange(lengths.max() if length is None else length) < lengths
        return torch.from_numpy((mask[:, ::-1] if self.pad_left else mask).astype(np.int64))


class Images:
    """Images turned into pixels one by one, when a batch is made.

    Parameters
    ----------
    items : sequence of length n
        Images, or names of their files.
    transform : callable or Hugging Face image processor
        Maps one image to its pixels.
    n_channels : int, default=None
        Channels that files are opened with.
    shape : tuple of int, default=None
        Shape of the pixels of every image; None means that of the first one.
    """

    lengths: np.ndarray | None = None

    def __init__(
        self,
        items: Sequence[Any] | np.ndarray,
        transform: Callable,
        n_channels: int | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.items, self.transform, self.n_channels = items, transform, n_channels
        self.shape = shape
        if shape is None and len(items):
            self.shape = tuple(self._pixels(0).shape)

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: np.ndarray) -> "Images":
        if isinstance(self.items, DatasetRows):
            items: Sequence[Any] = self.items[rows]
        else:
            items = [self.items[i] for i in rows]
        return Images(items, self.transform, self.n_channels, self.shape)

    def tensor(self, rows: np.ndarray, length: int | None) -> Tensor:
        # one image at a time: the pixels of a row must not depend on its neighbours
        return torch.stack([self._pixels(i) for i in rows])

    def _pixels(self, i: int) -> Tensor:
        """Return the pixels of one image, or say that it has none or others than the first."""
        item, row = self.items[i], np.array([i])
        try:
            image = open_image(item, self.n_channels) if is_file_name(item) else item
            pixels = pixels_of(image, self.transform)
        except Exception as error:
            what = f"The preprocessor cannot read the first of them: {error!r}."
            raise UnreadableError(row, what) from error
        if self.shape not in (None, tuple(pixels.shape)):
            raise UnreadableError(
                row,
                f"The preprocessor makes pixels of shape {tuple(pixels.shape)} of the first of "
                f"them, but {self.shape} of the first image. Let it convert to one size and one "
                "number of channels, for example by `image.convert('RGB')`.",
            )
        return pixels


def pixels_of(item: Any, transform: Any) -> Tensor:
    """Apply a callable, or a Hugging Face image processor, to one image."""
    if hasattr(transform, "preprocess"):
        return transform(images=item, return_tensors="pt")["pixel_values"][0].float()
    pixels = transform(item)
    return (pixels if isinstance(pixels, torch.Tensor) else torch.as_tensor(pixels)).float()
