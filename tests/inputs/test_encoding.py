import numpy as np
import pandas as pd
import pytest
import torch
from skorch.helper import SliceDict

from sklearn_diffuq._inputs.encode_images import encode_images
from sklearn_diffuq._inputs.encode_mapping import encode_mapping
from sklearn_diffuq._inputs.encode_text import encode_text
from sklearn_diffuq._inputs.input_kind import input_kind


class WordTokenizer:
    """One token per word (its number of letters), between 1 (begin) and 2 (end)."""

    pad_token_id = None
    eos_token_id = 2

    def __call__(self, texts, truncation, max_length, return_attention_mask):
        ids = [[1, *(len(word) + 10 for word in text.split()), 2] for text in texts]
        return {"input_ids": [row[:max_length] for row in ids] if truncation else ids}


TEXTS = ["a bb", "ccc", "", "a bb ccc dddd eeeee ffffff"]


@pytest.fixture
def texts():
    return encode_text(TEXTS, WordTokenizer(), max_length=8)


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        np.array,
        lambda t: np.array(t, dtype=object),
        lambda t: pd.Series(t, index=[7, 3, 5, 1]),
        lambda t: pd.DataFrame({"text": t}),
        lambda t: np.array(t, dtype=object)[:, None],
    ],
)
def test_text_containers_agree(make):
    X = make(TEXTS)
    assert input_kind(X) == "text" or X.ndim == 2
    inputs = encode_text(X, WordTokenizer())
    assert len(inputs) == 4
    assert inputs.lengths.tolist() == [4, 3, 2, 8]
    batch = inputs.batch([1, 0])
    assert batch["input_ids"].tolist() == [[1, 13, 2, 2], [1, 11, 12, 2]]  # padded with eos
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert "token_type_ids" not in batch


def test_text_is_cut_at_max_length_and_padded_to_length(texts):
    assert encode_text(TEXTS, WordTokenizer(), max_length=5).lengths.tolist() == [4, 3, 2, 5]
    batch = texts.batch([2], length=8)
    assert batch["input_ids"].shape == (1, 8)
    assert batch["attention_mask"].sum() == 2


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("one text", "collection of texts"),
        (["a", None], "row 1 is None"),
        (["a", 3.5], "row 1 is 3.5"),
        (pd.DataFrame({"a": ["x"], "b": ["y"], "c": ["z"]}), "X has 3"),
    ],
)
def test_text_errors(X, message):
    with pytest.raises((TypeError, ValueError), match=message):
        encode_text(X, WordTokenizer())


def test_text_without_any_padding_token():
    tokenizer = WordTokenizer()
    tokenizer.eos_token_id = None
    with pytest.raises(ValueError, match="pad_token"):
        encode_text(TEXTS, tokenizer)
    assert encode_text(TEXTS, tokenizer, pad_id=9).batch([0, 3])["input_ids"][0, -1] == 9


def test_image_layouts_agree():
    rng = np.random.default_rng(0)
    X = rng.random((4, 3, 6, 5))
    expected = torch.from_numpy(X.astype(np.float32))
    for same in (X, X.transpose(0, 2, 3, 1), torch.from_numpy(X), list(X)):
        batch = encode_images(same, n_channels=3, image_size=(6, 5)).batch(range(4))
        assert torch.equal(batch["pixel_values"], expected)
        assert batch["pixel_values"].is_contiguous()
    grey = encode_images(X[:, 0], n_channels=1).batch([2])["pixel_values"]
    assert torch.equal(grey, expected[2:3, :1])


def test_uint8_images_become_unit_interval_and_floats_stay():
    X = np.array([[[0, 255], [51, 102]]], dtype=np.uint8)
    pixels = encode_images(X, n_channels=1).batch([0])["pixel_values"]
    torch.testing.assert_close(pixels, torch.tensor([[[[0.0, 1.0], [0.2, 0.4]]]]))
    same = encode_images(X * 1.0, n_channels=1).batch([0])["pixel_values"]
    assert same.max() == 255


@pytest.mark.parametrize(
    ("shape", "n_channels", "size", "message"),
    [
        ((2, 4, 8, 8), 3, None, "model expects .3"),
        ((2, 8, 8), 3, None, "got shape .2, 8, 8."),
        ((2, 4, 8, 8), 3, (16, 16), r"expects \(3, 16, 16\)"),
        ((2, 3, 8, 3), 3, None, "axis 1 and axis 3"),
        ((2, 64), 1, None, "got shape"),
    ],
)
def test_image_shape_errors(shape, n_channels, size, message):
    with pytest.raises(ValueError, match=message):
        encode_images(np.zeros(shape), n_channels=n_channels, image_size=size)


def test_image_size_settles_an_ambiguous_channel_axis():
    X = np.random.default_rng(0).random((2, 3, 8, 3))
    pixels = encode_images(X, n_channels=3, image_size=(8, 3)).batch([1])["pixel_values"]
    assert torch.equal(pixels, torch.from_numpy(X[1:].astype(np.float32)))


def test_transforms_run_per_batch_on_the_rows_asked_for():
    seen = []

    def transform(image):
        seen.append(image.size)
        return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1) / 255

    Image = pytest.importorskip("PIL.Image")
    X = [Image.new("RGB", (4 + i, 4), color=(51 * i, 0, 0)) for i in range(5)]
    assert input_kind(X) == "images"
    inputs = encode_images(X, transform, n_channels=3, image_size=(4, 4))
    assert len(seen) == 1  # the shape check
    pixels = inputs.take([4, 2]).batch([1])["pixel_values"]
    assert seen[1:] == [(6, 4)]
    assert pixels.shape == (1, 3, 4, 4)
    torch.testing.assert_close(pixels[0, 0], torch.full((4, 4), 0.4))
    with pytest.raises(ValueError, match="The transform gives images of shape .3, 4, 4."):
        encode_images(X, transform, n_channels=1)
    with pytest.raises(ValueError, match="PIL images without a transform"):
        encode_images(X, n_channels=3)


def test_hugging_face_image_processor():
    transformers = pytest.importorskip("transformers")
    processor = transformers.ViTImageProcessor(
        size={"height": 8, "width": 8}, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    X = np.full((3, 12, 12, 3), 51, dtype=np.uint8)
    pixels = encode_images(X, processor, n_channels=3, image_size=(8, 8)).batch([0, 2])[
        "pixel_values"
    ]
    torch.testing.assert_close(pixels, torch.full((2, 3, 8, 8), 0.2))


def test_image_errors_on_values():
    with pytest.raises(ValueError, match="NaN"):
        encode_images(np.full((1, 1, 2, 2), np.nan), n_channels=1)
    with pytest.raises(ValueError, match="different shapes"):
        encode_images([np.zeros((1, 2, 2)), np.zeros((1, 3, 2))], n_channels=1)


def test_mapping_redoes_padding_on_the_right():
    X = {
        "input_ids": [[0, 0, 5, 6], [7, 8, 9, 0]],
        "attention_mask": [[0, 0, 1, 1], [1, 1, 1, 0]],
        "token_type_ids": [[0, 0, 0, 1], [0, 1, 1, 0]],
    }
    for make in (dict, lambda x: {k: torch.tensor(v) for k, v in x.items()}):
        batch = encode_mapping(make(X), pad_id=3).batch([0, 1], length=5)
        assert batch["input_ids"].tolist() == [[5, 6, 3, 3, 3], [7, 8, 9, 3, 3]]
        assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
        assert batch["token_type_ids"].tolist() == [[0, 1, 0, 0, 0], [0, 1, 1, 0, 0]]


def test_values_per_token_are_padded_as_the_tokens_are():
    mask = np.array([[0, 1, 1], [1, 1, 1]])
    values = np.array([[9, 0.25, 0.5], [0.75, 1.5, -2]])
    boxes = np.arange(24.0).reshape(2, 3, 4)
    X = {"input_ids": np.full((2, 3), 5), "attention_mask": mask, "values": values, "bbox": boxes}
    ragged = X | {"bbox": boxes.astype(int).tolist()}
    for given in (X, ragged):
        batch = encode_mapping(given).batch([0, 1], length=4)
        assert batch["values"].dtype == torch.float32
        assert batch["values"].tolist() == [[0.25, 0.5, 0, 0], [0.75, 1.5, -2, 0]]
        expected = np.zeros((2, 4, 4))
        expected[0, :2], expected[1, :3] = boxes[0, 1:], boxes[1]
        assert batch["bbox"].tolist() == expected.tolist()
    assert batch["bbox"].dtype == torch.int64
    lists = {"input_ids": [[1, 2], [3]], "values": [[[0.5], [1]], [[2]]]}
    assert encode_mapping(lists).batch([1, 0])["values"].tolist() == [[[2], [0]], [[0.5], [1]]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": [[1, 2], [3, 2**32 + 4]]}, "Row 1 of 'input_ids' has the id 4294967300"),
        ({"input_ids": [[1, 2], [3, 10]]}, "Row 1 of 'input_ids' has the id 10.*from 0 to 9"),
        ({"input_ids": [[1, 2], [-3, 1]]}, "Row 1 of 'input_ids' has the id -3"),
        ({"input_ids": [[1, 2], [3.5, 1]]}, "Row 1 .* holds .3.5, 1.0. of dtype float64"),
        ({"input_ids": [[True, True], [True, False]]}, "Row 0 .* of dtype bool"),
        ({"input_ids": np.zeros((2, 0), int)}, "Row 0 of 'input_ids' has the shape .0,."),
        ({"input_ids": [1, 2]}, r"Row 0 of 'input_ids' has the shape \(\)"),
        ({"attention_mask": [[1, 1], [1, 0.5]]}, "mask of row 1 has the value 0.5"),
        ({"attention_mask": [[1, 1], [1, -1]]}, "mask of row 1 has the value -1"),
        ({"attention_mask": [[1], [1]]}, "mask of row 0 has the shape .1,., its token ids .2,."),
        ({"attention_mask": [1, 1]}, r"mask of row 0 has the shape \(\)"),
        ({"token_type_ids": [[0, 0], [0, 2]]}, "Row 1 of 'token_type_ids' has the id 2"),
        ({"values": [[[0.5], [1]], [[1, 2], [3, 4]]]}, "different shapes per token"),
        ({"values": [[0.5], ["a", "b"]]}, "'values.1.' must be an array of numbers"),
        ({"values": [[0.5], [np.nan, 1]]}, "NaN"),
    ],
)
def test_ids_and_masks_are_checked_row_by_row(changes, message):
    X = {"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 0]]} | changes
    with pytest.raises(ValueError, match=message):
        encode_mapping(X, limits={"input_ids": 10, "token_type_ids": 2})


def test_ids_of_another_tokenizer():
    with pytest.raises(ValueError, match="Row 1 of 'input_ids' has the id 13.*Give the tokenizer"):
        encode_text(TEXTS[:2], WordTokenizer(), limits={"input_ids": 13})


def test_mapping_of_arrays_and_slicedict():
    X = SliceDict(a=np.arange(8.0).reshape(4, 2), b=np.arange(4))
    assert input_kind(X) == "mapping"
    inputs = encode_mapping(X)
    assert len(inputs) == 4
    assert inputs.lengths is None
    batch = inputs.batch([3])
    assert batch["a"].tolist() == [[6.0, 7.0]]
    assert batch["b"].tolist() == [3]
    assert batch["b"].dtype == torch.int64


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ({}, "empty"),
        ({"a": np.zeros(3), "b": np.zeros(2)}, "different numbers of rows"),
        ({"a": ["x", "y"]}, "'a' must be an array of numbers"),
        ({"a": [np.inf]}, "infinity"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "one run of ones"),
        ({"input_ids": [[1, 2, 3, 4]]}, "row of 4 tokens"),
    ],
)
def test_mapping_errors(X, message):
    with pytest.raises(ValueError, match=message):
        encode_mapping(X, max_length=3)
