"""Calibrating paths on held-out samples: which samples, how often, and what is compared."""

from collections import Counter
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from known_laws import NoisyMargins, linearised
from tiny_backbones import ALL

from sklearn_diffuq._calibration import calibrator as calibrator_module
from sklearn_diffuq._calibration.calibration import Calibration
from sklearn_diffuq._calibration.calibrator import MIN_NOISE_ROWS, Calibrator
from sklearn_diffuq._calibration.temperature import effective_size, fit_temperature
from sklearn_diffuq._inputs.batching import unpadded_batches
from sklearn_diffuq._inputs.columns import Dense, Ragged
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs, LabelledInputs
from sklearn_diffuq._path.covariance import NO_NOISE, NoiseScales, fit_covariance
from sklearn_diffuq._path.mean import BlockwiseMean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._propagation.linearised import LinearisedPath, linearise_all, moment_draws
from sklearn_diffuq._propagation.path_noise import PathNoise
from sklearn_diffuq._propagation.propagate import mean_logits


def test_paths_get_the_noise_that_is_best_for_many_of_them(monkeypatch):
    n = 20_000
    path = NoisyMargins(n, 2.0, share=0.75)
    distance = torch.linspace(-1, 1, n).double()
    held_out = LabelledInputs(SimpleNamespace(take=len), path.y, torch.ones(n).double())
    law = linearised(torch.as_tensor(path.margin), torch.zeros(n).double())
    logits = law.logits * torch.exp(distance)[:, None]
    law = replace(law, logits=logits, distance=distance)
    monkeypatch.setattr(calibrator_module, "_drawn", lambda path, *args: path.draw(8))
    monkeypatch.setattr(calibrator_module, "MAX_SAMPLED_ROWS", n)
    monkeypatch.setattr(Calibrator, "noise_part", held_out)
    monkeypatch.setattr(calibrator_module, "PathNoise", SimpleNamespace(of=lambda *args: None))
    calibrator = Calibrator(None, held_out, True, 0)
    found = calibrator._drawn_sampling(path, law, NoiseScales(1.0, 0.0, 1.0))
    few, many = {}, {}
    for factor in (0.0, *calibrator_module.SHRINKAGE):
        path.with_scales(NoiseScales(factor))
        temperature, few[factor] = fit_temperature(path.draw(8), path.y)
        many[factor] = path.exact_nll(temperature)
    assert found.scales.shared == min(many, key=many.get) != min(few, key=few.get)
    assert found.scales == NoiseScales(found.scales.shared, 0.0, 1.0)
    assert found.nll == pytest.approx(min(many.values()), abs=1e-3)


def test_paths_are_drawn_for_some_random_rows_of_sorted_data_with_draws_of_their_own(monkeypatch):
    backbone, _ = ALL["vit"]()
    x = torch.randn(90, 1, 16, 16)
    y = torch.arange(90) // 30
    same = x[:1].expand_as(x).numpy()  # only draws can make the rows differ
    held_out = LabelledInputs(EncodedInputs({"x": Dense(same)}), y, torch.ones(90))
    monkeypatch.setattr(calibrator_module, "MAX_NOISE_ROWS", 60)
    monkeypatch.setattr(calibrator_module, "MAX_SAMPLED_ROWS", 20)
    noisy = Calibration(NoiseScales(0.1, 0.1, 0.2), 1.0, 0.0)
    monkeypatch.setattr(calibrator_module, "fit_noise", lambda *args, **kwargs: noisy)
    drawn, make = [], calibrator_module._drawn

    def spy(path, backbone, labelled, noise):
        drawn.append((labelled, make(path, backbone, labelled, noise)))
        return drawn[-1][1]

    monkeypatch.setattr(calibrator_module, "_drawn", spy)
    grid = time_grid(4, 2)
    with backbone.frozen():
        statistics = collect_statistics(backbone, [{"x": x}], steps_of(grid), False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        path = GaussianPath(BlockwiseMean(backbone), covariance, grid)
        calibrator = Calibrator(backbone, held_out, True, 0, draws=True)
        calibrator.calibrate(path, calibrator.reference(path))
    assert len(drawn) == len(calibrator_module.SHRINKAGE)
    for labelled, logits in drawn:
        assert torch.equal(torch.unique(labelled.y), torch.arange(3))
        assert torch.equal(labelled.y, held_out.y[calibrator.noise_rows[:20]])
        assert logits.shape == (calibrator_module.N_SAMPLED, 20, 3)
        assert not torch.allclose(logits[:, 0], logits[:, -1])  # of another batch


def test_noise_that_is_not_tried_is_half_the_noise_with_the_best_temperature(monkeypatch):
    backbone, path, held_out, _ = _held_out("vit", 60)
    noisy = Calibration(NoiseScales(0.6, 0.2, 0.4), 1.0, 0.0)
    monkeypatch.setattr(calibrator_module, "fit_noise", lambda *args, **kwargs: noisy)
    calibrator = Calibrator(backbone, held_out, True, 0)
    with backbone.frozen():
        found = calibrator.calibrate(path, calibrator.reference(path))["sampling"]
        law = linearise_all(path, backbone, calibrator.noise_part.inputs)
    assert found.scales == NoiseScales(0.3, 0.1, 0.4)
    drawn = law.sample(0.3, 0.1, 0.4, moment_draws(3, 0)) / torch.exp(0.4 * law.distance)[:, None]

    def nll(temperature):
        proba = torch.softmax(drawn / temperature, -1).mean(0)
        part = calibrator.noise_part
        log_p = proba[torch.arange(60), part.y].log()
        return -float((part.weight * log_p).sum() / part.weight.sum())

    assert found.nll == pytest.approx(nll(found.temperature), abs=1e-5)

    def loss(temperature):  # with the prior of one row
        n = effective_size(calibrator.noise_part.y, calibrator.noise_part.weight)
        return nll(temperature) + 0.5 * np.log(temperature) ** 2 / n

    best = min(loss(found.temperature * factor) for factor in (0.98, 1.02))
    assert loss(found.temperature) <= best


def test_drawn_paths_are_in_the_order_of_the_rows():
    backbone, path, held_out, logits = _held_out("bert", 70)
    noise = PathNoise.of(path, 4, 0)
    with backbone.frozen():
        found = calibrator_module._drawn(path, backbone, held_out, noise)
    torch.testing.assert_close(found, logits.expand(4, -1, -1), atol=1e-5, rtol=1e-5)


def _held_out(name, n):
    """Return a backbone, a path, and held-out samples that differ in their first value."""
    backbone, _ = ALL[name]()
    rng = np.random.default_rng(0)
    if name == "vit":
        x = rng.normal(size=(n, 1, 16, 16)).astype(np.float32)
        x[:, 0, 0, 0] = np.arange(n) / n
        inputs = EncodedInputs({"x": Dense(x)})
    else:
        items = [rng.integers(1, 50, length) for length in rng.integers(4, 17, n)]
        for i, item in enumerate(items):
            item[:2] = 1 + i % 49, 1 + i // 49
        inputs = EncodedInputs({"input_ids": Ragged(items, 0)}, max_length=16)
    grid = time_grid(backbone.n_blocks, 2)
    with backbone.frozen():
        statistics = collect_statistics(
            backbone, (batch for _, batch in unpadded_batches(inputs)), steps_of(grid), False
        )
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        logits = mean_logits(BlockwiseMean(backbone), grid, backbone, inputs)
    y = torch.multinomial(torch.softmax(3 * logits, 1), 1)[:, 0]
    held_out = LabelledInputs(inputs, y, torch.linspace(0.5, 2, n).double())
    return backbone, GaussianPath(BlockwiseMean(backbone), covariance, grid), held_out, logits


@pytest.fixture
def few_noise_rows(monkeypatch):
    monkeypatch.setattr(calibrator_module, "MAX_NOISE_ROWS", 40)


def _rows_of(batch):
    """Return what tells the rows of a batch apart; repeated rows only fill it up."""
    x = batch["x"][:, 0, 0, :1] if "x" in batch else batch["input_ids"][:, :2]
    return {tuple(row) for row in x.tolist()}


@pytest.mark.parametrize("n", [MIN_NOISE_ROWS - 1, 70, 150])
@pytest.mark.parametrize("name", ["vit", "bert"])
def test_the_reference_runs_the_blocks_over_each_sample_once(name, n, few_noise_rows, monkeypatch):
    backbone, path, held_out, _ = _held_out(name, n)
    embed, walk, block = backbone.embed, backbone.walk, backbone.block
    embedded, through = Counter(), [Counter() for _ in range(backbone.n_blocks)]

    def count_embed(batch):
        embedded.update(_rows_of(batch))
        return embed(batch)

    def count_walk(batch, visit):
        embedded.update(_rows_of(batch))
        return walk(batch, visit)

    def count_block(k, h, context, call=None):
        through[k].update(_rows_of(context.batch))
        return block(k, h, context, call)

    monkeypatch.setattr(backbone, "embed", count_embed)
    monkeypatch.setattr(backbone, "walk", count_walk)
    monkeypatch.setattr(backbone, "block", count_block)
    with backbone.frozen():
        Calibrator(backbone, held_out, True, 0).reference(path)
    for counted in (embedded, *through):
        assert len(counted) == n
        assert set(counted.values()) == {1}


@pytest.mark.parametrize("n", [MIN_NOISE_ROWS - 1, 40, 150])
@pytest.mark.parametrize("name", ALL)
def test_the_reference_has_the_logits_of_the_mean_in_the_order_of_the_samples(
    name, n, few_noise_rows
):
    backbone, path, held_out, logits = _held_out(name, n)
    calibrator = Calibrator(backbone, held_out, True, 0)
    with backbone.frozen():
        found = calibrator.reference(path)
        plain = calibrator.run_mean(path.mean, path.grid)
    assert found.logits.dtype == torch.float32
    torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(plain.logits, logits)
    expected = fit_temperature(logits[None], held_out.y, held_out.weight)
    assert (plain.temperature, plain.nll) == expected
    assert (found.temperature, found.nll) == pytest.approx(expected, rel=1e-4)
    assert plain.law is None


def test_the_law_of_the_reference_is_that_of_the_noise_rows(few_noise_rows):
    backbone, path, held_out, logits = _held_out("vit", 70)
    calibrator = Calibrator(backbone, held_out, True, 0)
    with backbone.frozen():
        law = calibrator.reference(path).law
        expected = linearise_all(path, backbone, calibrator.noise_part.inputs)
    for field in fields(LinearisedPath):
        assert torch.equal(getattr(law, field.name), getattr(expected, field.name))
    expected = logits[calibrator.noise_rows]
    torch.testing.assert_close(law.logits.float(), expected, atol=1e-5, rtol=1e-5)


def test_noise_rows_are_random_rows_each_once(few_noise_rows):
    def rows(n, seed=0):
        return Calibrator(None, range(n), True, seed).noise_rows

    assert len(rows(MIN_NOISE_ROWS - 1)) == 0
    assert sorted(rows(MIN_NOISE_ROWS)) == list(range(MIN_NOISE_ROWS))
    many = rows(1000)
    assert len(np.unique(many)) == len(many) == 40
    assert np.array_equal(many, rows(1000))
    assert not np.array_equal(many, rows(1000, seed=1))
    assert many[:20].max() > 500 > many[:20].min()


def test_few_samples_fit_a_temperature_alone():
    backbone, path, held_out, logits = _held_out("vit", MIN_NOISE_ROWS - 1)
    calibrator = Calibrator(backbone, held_out, True, 0)
    with backbone.frozen():
        reference = calibrator.reference(path)
        found = calibrator.calibrate(path, reference)
    assert reference.law is None
    expected = Calibration(NO_NOISE, *fit_temperature(logits[None], held_out.y, held_out.weight))
    assert found == dict.fromkeys(("mean", "moments", "sampling"), expected)


def test_a_mean_that_is_not_linearised_yet_is_linearised_for_the_noise(few_noise_rows):
    backbone, path, held_out, _ = _held_out("vit", 70)
    calibrator = Calibrator(backbone, held_out, True, 0)
    with backbone.frozen():
        found = calibrator.calibrate(path, calibrator.run_mean(path.mean, path.grid))
        noisy = path.with_scales(NoiseScales(0.5, 0.5, 0.5))
        expected = calibrator.calibrate(noisy, calibrator.reference(path))
    assert {k: (c.scales, c.temperature, c.nll) for k, c in found.items()} == {
        k: (c.scales, c.temperature, c.nll) for k, c in expected.items()
    }


@pytest.mark.parametrize("distance", [True, False])
def test_perturbed_copies_are_made_where_the_distance_may_count(
    distance, few_noise_rows, monkeypatch
):
    backbone, path, held_out, _ = _held_out("vit", 70)
    monkeypatch.setattr(calibrator_module, "MAX_PERTURBED_ROWS", 15)
    fitted = []

    def fit_noise(clean, perturbed, **options):
        fitted.append((clean, perturbed, options))
        return Calibration(NO_NOISE, 1.0, 0.0)

    monkeypatch.setattr(calibrator_module, "fit_noise", fit_noise)
    calibrator = Calibrator(backbone, held_out, distance, 3)
    with backbone.frozen():
        reference = calibrator.reference(path)
        calibrations = calibrator.calibrate(path, reference)
    ((clean, perturbed, options),) = fitted
    rows = torch.from_numpy(calibrator.noise_rows)
    assert clean.law is reference.law
    assert torch.equal(clean.y, held_out.y[rows])
    assert torch.equal(clean.weight, held_out.weight[rows])
    assert options == {"distance": distance, "seed": 3}
    assert calibrations["sampling"] is calibrations["moments"]
    assert calibrations["mean"] == Calibration(NO_NOISE, reference.temperature, reference.nll)
    if not distance:
        assert perturbed is None
        return
    assert torch.equal(perturbed.y, clean.y[:15])
    assert torch.equal(perturbed.weight, clean.weight[:15])
    assert perturbed.law.logits.shape == (15, 3)
    assert not torch.allclose(perturbed.law.logits, clean.law.logits[:15], atol=1e-3)
    assert perturbed.law.distance.mean() > clean.law.distance[:15].mean()
