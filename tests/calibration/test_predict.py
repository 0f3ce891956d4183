"""Predictions in chunks: texts of many lengths, in any company and order."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_backbones import ALL

from sklearn_diffuq._calibration.calibration import Calibration
from sklearn_diffuq._calibration.predict import CalibratedPath, familiarity
from sklearn_diffuq._inputs.batching import unpadded_batches
from sklearn_diffuq._inputs.columns import Dense, Ragged
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._inputs.few_rows import FewRows
from sklearn_diffuq._path.covariance import NoiseScales, fit_covariance
from sklearn_diffuq._path.mean import BlockwiseMean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._propagation.linearised import linearise_all, moment_draws
from sklearn_diffuq._propagation.margin_table import MomentTable
from sklearn_diffuq._propagation.path_noise import PathNoise
from sklearn_diffuq._propagation.propagate import propagate

NOISE = NoiseScales(0.3, 0.2, 0.1)
LENGTHS = [2, 15, 7, 8, 16, 3, 9, 16, 2, 12]  # of three paddings, and two at the maximum


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def texts(request):
    backbone, _ = ALL[request.param]()
    rng = np.random.default_rng(0)
    items = [rng.integers(1, 50, length) for length in LENGTHS]
    inputs = EncodedInputs({"input_ids": Ragged(items, 0)}, max_length=16)
    grid = time_grid(3, 3)
    with backbone.frozen():
        statistics = collect_statistics(
            backbone, (batch for _, batch in unpadded_batches(inputs)), steps_of(grid), False
        )
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        path = GaussianPath(BlockwiseMean(backbone), covariance, grid)
        table = MomentTable.of(linearise_all(path, backbone, inputs), NOISE)
    return backbone, inputs, path, table


def _predict(texts, rows, inference, scales=NOISE, variance=True):
    backbone, inputs, path, table = texts
    calibrated = CalibratedPath(path, Calibration(scales, 1.3, 0.0, table), inference, 4, 0)

    def reduce(proba):
        return [proba.swapaxes(0, 1)]

    return calibrated.probabilities(backbone, inputs.take(rows), reduce, details=variance)


@pytest.mark.parametrize("inference", ["sampling", "moments", "mean"])
def test_a_text_has_the_same_answer_in_any_company(texts, inference):
    together = _predict(texts, np.arange(10), inference)
    order = np.random.default_rng(1).permutation(10)
    for all_rows, shuffled in zip(together, _predict(texts, order, inference), strict=True):
        np.testing.assert_array_equal(all_rows[order], shuffled)
    for row in range(10):
        for all_rows, alone in zip(together, _predict(texts, [row], inference), strict=True):
            np.testing.assert_array_equal(all_rows[[row]], alone)


def test_without_noise_the_wrapped_model_answers(texts):
    backbone, inputs, _, _ = texts
    for inference in ("sampling", "moments", "mean"):
        proba, *_ = _predict(texts, np.arange(10), inference, NoiseScales())
        for row in range(10):
            with backbone.frozen(), torch.no_grad():
                logits = backbone.logits(inputs.batch([row]))
            expected = torch.softmax(logits.double() / 1.3, 1)
            np.testing.assert_allclose(proba[row], expected, atol=1e-5)


def test_padding_changes_no_path(texts):
    backbone, inputs, path, _ = texts
    noisy = path.with_scales(NOISE)
    proba, variance, _ = _predict(texts, np.arange(10), "sampling")
    with backbone.frozen(), torch.no_grad():
        for row in range(10):
            noise = PathNoise.of(path, 4, seed=0)
            end = propagate(noisy, backbone, inputs.batch([row]), noise)
            temperature = 1.3 * np.exp(NOISE.distance * float(end.distance[0]))
            expected = torch.softmax(end.logits[:, 0].double() / temperature, 1)
            np.testing.assert_allclose(proba[row], expected, atol=1e-4)
            np.testing.assert_allclose(variance[row], end.variance[0], rtol=1e-3)


def test_familiarity_is_minus_the_mean_distance_of_what_steps_arrive_at(texts):
    backbone, inputs, path, _ = texts
    calibration = Calibration(NoiseScales(), 1.0, 0.0)
    scores = familiarity(CalibratedPath(path, calibration, "mean", 1, 0), backbone, inputs)
    with backbone.frozen(), torch.no_grad():
        for row in range(10):
            h, context = backbone.embed(inputs.batch([row]))
            distances = []
            for block in range(3):
                h = backbone.block(block, h, context)
                distances.append(float(path.covariance.distance(h, block + 1, context.mask)))
            assert scores[row] == pytest.approx(-np.mean(distances), abs=1e-3)


@pytest.mark.parametrize("inference", ["moments", "mean"])
def test_probabilities_alone_cost_no_distance_of_the_embedding(texts, inference, monkeypatch):
    process, calls = texts[2].covariance.distances[0].process, []
    look = process.look
    monkeypatch.setattr(process, "look", lambda *args: calls.append(1) or look(*args))
    with_variance, *_ = _predict(texts, np.arange(10), inference)
    assert calls
    calls.clear()
    (alone,) = _predict(texts, np.arange(10), inference, variance=False)
    assert not calls
    np.testing.assert_array_equal(alone, with_variance)


def test_probabilities_are_reduced_over_paths_of_sum_one(texts):
    backbone, inputs, path, table = texts
    seen = []

    def reduce(proba):
        seen.append(proba)
        return [proba.mean(0), proba.std(0).max(1)]

    calibrated = CalibratedPath(path, Calibration(NOISE, 1.3, 0.0, table), "sampling", 6, 0)
    mean, spread = calibrated.probabilities(backbone, inputs, reduce)
    assert (mean.shape, spread.shape) == ((10, 2), (10,))
    assert mean.dtype == spread.dtype == np.float64
    assert spread.min() > 0
    for proba in seen:
        assert len(proba) == 6
        np.testing.assert_allclose(proba.sum(2), 1, rtol=1e-15)
    assert path.scales == NoiseScales()  # the path itself has no noise, whatever is predicted


@pytest.mark.parametrize("inference", ["sampling", "moments"])
def test_the_seed_chooses_the_draws(texts, inference):
    backbone, inputs, path, table = texts

    def predict(seed):
        calibrated = CalibratedPath(path, Calibration(NOISE, 1.3, 0.0, table), inference, 4, seed)
        return calibrated.probabilities(backbone, inputs, lambda proba: [proba.mean(0)])[0]

    np.testing.assert_array_equal(predict(3), predict(3))
    assert not np.array_equal(predict(3), predict(4))


def test_the_mean_path_is_followed_by_its_mean_whatever_the_noise(texts):
    noisy = _predict(texts, np.arange(10), "mean", NOISE, variance=False)
    plain = _predict(texts, np.arange(10), "mean", NoiseScales(distance=0.1), variance=False)
    np.testing.assert_array_equal(noisy, plain)


def test_moments_widen_the_covariances_of_the_table_and_the_temperature(texts):
    backbone, inputs, path, table = texts
    (found,) = _predict(texts, np.arange(10), "moments", variance=False)
    draws = moment_draws(2, 0)
    with backbone.frozen(), torch.no_grad():
        for row in range(10):
            end = propagate(path.with_scales(NOISE), backbone, inputs.batch([row]))
            logits = table.sample(end.logits[0], torch.exp(0.2 * end.distance), draws)
            temperature = 1.3 * np.exp(0.1 * float(end.distance))
            expected = torch.softmax(logits[:, 0] / temperature, -1)
            np.testing.assert_allclose(found[row], expected, atol=1e-4)
            assert abs(float(end.distance)) > 0.01


def test_steps_in_bfloat16_change_little_and_readout_and_distances_stay_in_float32(texts):
    backbone, inputs, path, table = texts
    exact = CalibratedPath(path, Calibration(NOISE, 1.3, 0.0, table), "moments", 4, 0)
    mixed = replace(exact, mixed=True)
    precise, half = (
        calibrated.probabilities(backbone, inputs, lambda proba: [proba.mean(0)], details=True)
        for calibrated in (exact, mixed)
    )
    assert not np.array_equal(half[0], precise[0])
    np.testing.assert_allclose(half[0], precise[0], atol=0.02)
    np.testing.assert_allclose(half[2], precise[2], atol=0.1)  # distances
    alone = mixed.probabilities(backbone, inputs.take([3]), lambda proba: [proba.mean(0)])
    np.testing.assert_array_equal(alone[0][0], half[0][3])


def test_a_chunk_of_few_rows_is_tried_beside_a_full_one_and_then_replaces_it(texts):
    backbone, inputs, path, table = texts
    calibrated = CalibratedPath(path, Calibration(NOISE, 1.3, 0.0, table), "moments", 4, 0)
    rows = []
    advance = backbone.block

    def block(k, h, context, call=None):
        if k == 0:
            rows.append(len(h))
        return advance(k, h, context, call)

    backbone.block = block
    try:
        for _ in range(2):
            calibrated.probabilities(backbone, inputs.take([1]), lambda proba: [proba.mean(0)])
    finally:
        del backbone.block
    full, few, again = (*rows, None)[:3]
    assert (full, few) == (64, 1)
    agreed = list(calibrated.few.agree.values())
    assert agreed in ([True], [False])
    assert again == (1 if agreed == [True] else 64)
    assert pickle.loads(pickle.dumps(calibrated.few)) == FewRows()


def test_few_rows_that_give_other_bits_stay_in_full_chunks():
    """Values that depend on the number of rows, as products of matrices may."""
    inputs, few, sizes = EncodedInputs({"x": Dense(np.arange(8.0))}), FewRows(), []

    def function(batch, full):
        sizes.append(len(batch["x"]))
        values = batch["x"] + (0.0 if len(batch["x"]) >= 4 else 1e-3)
        return (values,), (values,)

    for _ in range(4):
        rows = np.array([5, 5, 5, 5, 5, 5, 5, 5])
        (values,) = few.run("key", function, inputs, 1, rows, None, "cpu")
        assert values[0] == 5.0
    assert sizes == [8, 1, 8, 2, 8, 4, 4]
    assert list(few.agree.values()) == [False, False, True]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("inference", ["moments", "sampling"])
def test_rows_that_distances_are_measured_from_have_one_answer_in_any_company(
    texts, inference, mixed
):
    """Their distance to themselves is the root of what is left of rounding."""
    backbone, _, path, table = texts
    rng = np.random.default_rng(0)
    items = [rng.integers(1, 50, length) for length in rng.integers(2, 17, 60)]
    inputs = EncodedInputs({"input_ids": Ragged(items, 0)}, max_length=16)
    with backbone.frozen():
        batches = (batch for _, batch in unpadded_batches(inputs))
        statistics = collect_statistics(backbone, batches, path.steps, False)
    covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
    path = replace(path, covariance=covariance)
    calibration = Calibration(NOISE, 1.3, 0.0, table)
    calibrated = CalibratedPath(path, calibration, inference, 4, 0, mixed=mixed)

    def answers(rows):
        return calibrated.probabilities(
            backbone, inputs.take(rows), lambda proba: [proba.mean(0)], details=True
        )

    together = answers(np.arange(60))
    for n_rows in (1, 2, 3, 7):
        for start in range(0, 60 - n_rows, n_rows):
            rows = np.arange(start, start + n_rows)
            for found, expected in zip(answers(rows), together, strict=True):
                np.testing.assert_array_equal(found, expected[rows])
