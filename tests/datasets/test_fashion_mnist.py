"""Fashion-MNIST: the IDX format, the split and the checks."""

import gzip
import struct

import numpy as np
import pytest

from sklearn_diffuq.datasets import _fashion_mnist, fetch_fashion_mnist

SPLITS = ("train", "calibration", "test")


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def data_home(tmp_path, monkeypatch):
    """A small data set whose images encode their label and index."""
    monkeypatch.setattr(_fashion_mnist, "_N_TRAIN", 20)
    monkeypatch.setattr(_fashion_mnist, "_N_CALIBRATION", 6)
    directory = tmp_path / "fashion-mnist"
    directory.mkdir()
    for part, n_images in (("train", 30), ("t10k", 4)):
        labels = (np.arange(n_images) % 10).astype(np.uint8)
        images = np.zeros((n_images, 28, 28), dtype=np.uint8)
        images[:, 3, 5] = np.arange(n_images)
        write_idx(directory / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(directory / f"{part}-labels-idx1-ubyte.gz", labels)
    return tmp_path


def test_images_keep_their_labels_and_scale(data_home):
    data = fetch_fashion_mnist(data_home, verify=False)
    assert data.X_train.shape[1:] == (1, 28, 28)
    assert data.X_train.dtype == data.X_test.dtype == np.float32
    rows = {split: np.round(data[f"X_{split}"][:, 0, 3, 5] * 255) for split in SPLITS}
    assert [len(rows[split]) for split in SPLITS] == [20, 6, 4]
    assert len({*rows["train"], *rows["calibration"]}) == 26
    for split in SPLITS:
        np.testing.assert_array_equal(data[f"y_{split}"], rows[split] % 10)


def test_normalize_is_the_documented_transform(data_home):
    plain = fetch_fashion_mnist(data_home, verify=False)
    normal = fetch_fashion_mnist(data_home, verify=False, normalize=True)
    np.testing.assert_allclose(
        normal.X_test, (plain.X_test - plain.mean) / plain.std, rtol=1e-5, atol=1e-6
    )


def test_data_home_from_the_environment(data_home, monkeypatch):
    monkeypatch.setenv("SKLEARN_DIFFUQ_DATA", str(data_home))
    assert len(fetch_fashion_mnist(verify=False).y_test) == 4


def test_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\.gz.*fashion-mnist"):
        fetch_fashion_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="Public source: https://"):
        fetch_fashion_mnist(tmp_path)


def test_wrong_content_is_refused(data_home):
    with pytest.raises(ValueError, match="not the expected file.*verify=False"):
        fetch_fashion_mnist(data_home)


def test_other_formats_are_refused(data_home):
    path = data_home / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(b"PK\x03\x04 and more"))
    with pytest.raises(ValueError, match="not an IDX file"):
        fetch_fashion_mnist(data_home, verify=False)


def test_real_files(shared):
    data = fetch_fashion_mnist(shared / "data", normalize=True)
    assert [len(data[f"X_{split}"]) for split in SPLITS] == [20_000, 3_000, 10_000]
    assert np.bincount(data.y_test).tolist() == [1000] * 10
    assert abs(data.X_train.mean()) < 0.01
    assert abs(data.X_train.std() - 1) < 0.01
    # The samples that the shared image model was trained on, as recorded at training.
    split = np.load(shared / "data" / "fashion-mnist" / "split.npz")
    labels = gzip.decompress(
        (shared / "data" / "fashion-mnist" / "train-labels-idx1-ubyte.gz").read_bytes()
    )[8:]
    labels = np.frombuffer(labels, np.uint8)
    for name in ("train", "calibration"):
        np.testing.assert_array_equal(data[f"y_{name}"], labels[split[name]])
