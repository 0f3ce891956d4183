import numpy as np
import pytest
import torch

from sklearn_diffuq._inputs.batching import (
    _bucket,
    inference_batches,
    map_rows,
    training_batches,
    unpadded_batches,
)
from sklearn_diffuq._inputs.columns import Dense
from sklearn_diffuq._inputs.encode_mapping import encode_mapping
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._inputs.table_encoder import encode_table


def test_take_keeps_order_and_repeats():
    texts = encode_mapping({"input_ids": [[1] * 4, [2] * 3, [3] * 2, [4] * 8]})
    taken = texts.take([3, 0, 3])
    assert taken.lengths.tolist() == [8, 4, 8]
    for name, value in taken.batch([2, 1]).items():
        assert torch.equal(value, texts.batch([3, 0])[name])
    table = encode_table(np.arange(6.0).reshape(3, 2), [[0], [1], [2]]).take([2, 0])
    assert table.batch([0])["x_num"].tolist() == [[4.0, 5.0]]
    assert table.batch([0])["x_cat"].tolist() == [[2]]


def test_buckets_leave_padding_and_follow_the_documented_lengths():
    assert sorted({_bucket(n, None) for n in range(1, 300)}) == [
        *(8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
    ]
    for n in range(1, 300):
        assert n < _bucket(n, None) <= max(8, 2 * n)
        assert _bucket(n, 300) <= 300
    assert _bucket(300, 300) == 300
    assert _bucket(299, 300) == 300


def test_inference_chunks_depend_on_the_row_alone():
    rng = np.random.default_rng(0)
    ids = [list(range(1, n + 1)) for n in rng.integers(1, 41, size=200)]
    inputs = encode_mapping({"input_ids": ids}, max_length=40)

    def chunk_shape(inputs):
        shapes, answered = {}, []
        for rows, padded, length in inference_batches(inputs, max_rows=32, max_tokens=256):
            assert (padded[: len(rows)] == rows).all()
            mask = inputs.batch(padded, length)["attention_mask"]
            full = inputs.lengths[rows] == 40
            assert full.all() or not full.any()
            assert full.all() or not mask.all(1).any()  # a mask is present in every row, or in none
            assert mask.numel() <= 256
            shapes |= {int(row): mask.shape for row in rows}
            answered += rows.tolist()
        assert sorted(answered) == list(range(len(inputs)))
        return shapes

    together = chunk_shape(inputs)
    for i in range(0, 200, 17):
        assert chunk_shape(inputs.take([i]))[0] == together[i]
    order = rng.permutation(200)
    shuffled = chunk_shape(inputs.take(order))
    assert all(shuffled[new] == together[old] for new, old in enumerate(order))


def test_inference_chunks_of_dense_rows():
    inputs = encode_table(np.zeros((10, 2)))
    chunks = list(inference_batches(inputs, max_rows=4))
    assert [len(padded) for _, padded, _ in chunks] == [4, 4, 4]
    assert [len(rows) for rows, _, _ in chunks] == [4, 4, 2]


def test_training_batches_use_each_row_once_and_reproduce():
    rng = np.random.default_rng(0)
    ids = [[1] * n for n in rng.integers(1, 60, size=500)]
    for inputs in (encode_mapping({"input_ids": ids}), encode_table(np.zeros((500, 1)))):
        batches = training_batches(inputs, 16, np.random.default_rng(1))
        assert sorted(np.concatenate(batches).tolist()) == list(range(500))
        assert {len(b) for b in batches} <= {15, 16}
        again = training_batches(inputs, 16, np.random.default_rng(1))
        assert all((a == b).all() for a, b in zip(batches, again, strict=True))
        other = training_batches(inputs, 16, np.random.default_rng(2))
        assert not all(np.array_equal(a, b) for a, b in zip(batches, other, strict=True))


def test_training_batches_bring_texts_of_similar_length_together():
    lengths = np.random.default_rng(0).integers(1, 200, size=1000)
    inputs = encode_mapping({"input_ids": [[1] * n for n in lengths]})
    batches = training_batches(inputs, 16, np.random.default_rng(0))
    padded = sum(lengths[b].max() * len(b) for b in batches)
    assert padded < 1.15 * lengths.sum()  # random batches: about 1.9


# map_rows ---------------------------------------------------------------------------------------


@pytest.fixture
def texts():
    """Texts whose number of tokens is below 40, longer than one chunk altogether."""
    lengths = np.random.default_rng(0).integers(1, 40, size=300)
    return encode_mapping({"input_ids": [[i % 50 + 1] * int(n) for i, n in enumerate(lengths)]})


def summary(batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return ids[:, 0], torch.stack([mask.sum(1), (ids * mask).sum(1)], dim=1)


def test_map_rows_returns_every_row_in_its_place(texts):
    first, totals = map_rows(summary, texts)
    assert first.dtype == torch.int64
    assert totals.shape == (300, 2)
    for i in range(300):
        expected = summary(texts.batch([i]))
        assert first[i] == expected[0][0]
        assert totals[i].tolist() == expected[1][0].tolist()


@pytest.mark.parametrize("n_paths", [1, 4])
def test_map_rows_gives_a_row_the_same_batch_shape_in_any_company(texts, n_paths):
    def shapes(inputs):
        def shape_of(batch):
            n, length = batch["input_ids"].shape
            return (torch.tensor([[n, length]]).expand(n, 2),)

        return map_rows(shape_of, inputs, n_paths=n_paths)[0]

    together = shapes(texts)
    order = np.random.default_rng(1).permutation(300)
    assert torch.equal(shapes(texts.take(order)), together[order])
    for i in range(0, 300, 37):
        assert torch.equal(shapes(texts.take([i])), together[[i]])


def test_more_paths_make_smaller_chunks_and_few_numbers_larger_ones():
    def sizes(n_numbers):
        def size(batch):
            n = len(batch["x"])
            return (torch.full((n,), n),)

        inputs = EncodedInputs({"x": Dense(np.zeros((200, n_numbers)))})
        return [int(map_rows(size, inputs, n_paths=n)[0][0]) for n in (1, 2, 4, 999)]

    assert sizes(1000) == [64, 64, 32, 1]
    assert sizes(128) == [128, 128, 64, 1]
    assert sizes(0) == sizes(1) == [512, 512, 256, 1]


def test_unpadded_batches_hold_each_row_once(texts):
    seen = []
    for rows, batch in unpadded_batches(texts, max_rows=16, max_tokens=200):
        assert len(batch["input_ids"]) == len(rows) <= 16
        assert torch.equal(batch["input_ids"][:, 0], torch.from_numpy(rows) % 50 + 1)
        seen += rows.tolist()
    assert sorted(seen) == list(range(300))
