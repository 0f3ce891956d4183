"""Find, check and unpack the files of a data set."""

import gzip
import hashlib
import os
from pathlib import Path

from sklearn.datasets import get_data_home


def data_directory(data_home, dataset):
    """Return the folder of `dataset` in `data_home`, the environment's or the default folder."""
    home = data_home or os.environ.get("SKLEARN_DIFFUQ_DATA")
    home = Path(home) if home else Path(get_data_home()) / "sklearn_diffuq"
    return home.expanduser() / dataset


def read_gzip(path, sha256, source):
    """Return the unpacked bytes of `path` after checking them.

    The checksum is that of the unpacked content, so recompressed files pass.

    Parameters
    ----------
    path : Path
    sha256 : str or None
        Expected checksum of the unpacked bytes. None accepts any content.
    source : str
        Public source of the file, for the error message.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Put {path.name!r} into the folder {str(path.parent)!r}, or "
            "point data_home (or the environment variable SKLEARN_DIFFUQ_DATA) to the folder that "
            f"contains {path.parent.name!r}. Public source: {source}"
        )
    content = gzip.decompress(path.read_bytes())
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{path} is not the expected file: its unpacked content has the SHA-256 {found}, "
            f"expected {sha256}. Download it from {source}, or pass verify=False to use your own."
        )
    return content
