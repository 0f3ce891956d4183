"""Temperature and noise scales against optima that are known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_backbones import ALL

from sklearn_diffuq import _calibration
from sklearn_diffuq._calibration.calibrate import _calibrate_sampling, calibrate
from sklearn_diffuq._calibration.noise_scales import (
    PERTURBED_WEIGHTS,
    Calibration,
    _NoiseLoss,
    fit_noise,
)
from sklearn_diffuq._calibration.temperature import (
    all_paths_nll,
    effective_size,
    fit_temperature,
    path_nll,
)
from sklearn_diffuq._inputs.encoded_inputs import Dense, EncodedInputs, LabelledInputs
from sklearn_diffuq._path.covariance import NoiseScales, fit_covariance
from sklearn_diffuq._path.path import BlockwiseMean, GaussianPath
from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._propagation.linearised import LinearisedPath


def _labels(logits, seed=0):
    p = torch.softmax(logits.double(), -1)
    return torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed))[:, 0]


@pytest.mark.parametrize("temperature", [0.1, 0.6, 1.0, 7.8])
@pytest.mark.parametrize("n_classes", [2, 30])
def test_temperature_is_recovered(temperature, n_classes):
    logits = 2 * torch.randn(20_000, n_classes, generator=torch.Generator().manual_seed(0))
    y = _labels(logits)
    found, _ = fit_temperature(temperature * logits[None], y)
    assert found == pytest.approx(temperature, rel=0.05)


def test_temperature_minimises_the_penalised_loss_on_a_grid():
    logits = torch.randn(1, 200, 3, generator=torch.Generator().manual_seed(0))
    y = torch.randint(3, (200,), generator=torch.Generator().manual_seed(1))  # no signal

    def loss(t):
        return float(path_nll(logits, y, t)) + np.log(t) ** 2 / 400

    found, nll = fit_temperature(logits, y)
    assert loss(found) <= min(loss(t) for t in np.geomspace(0.01, 100, 400)) + 1e-6
    assert nll == pytest.approx(float(path_nll(logits, y, found)))


def test_temperature_stays_moderate_where_every_row_is_right():
    logits = torch.tensor([[[4.0, 0.0]]]).expand(1, 50, 2)
    found, _ = fit_temperature(logits, torch.zeros(50, dtype=torch.long))
    assert 0.3 < found < 1


def test_path_nll_averages_probabilities_and_weighs_rows():
    logits = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    y = torch.arange(7) % 3
    weight = torch.arange(7.0)
    loss = -torch.softmax(logits.double() / 2, -1).mean(0)[torch.arange(7), y].log()
    expected = (loss * weight).sum() / weight.sum()
    assert float(path_nll(logits, y, 2.0, weight)) == pytest.approx(float(expected), rel=1e-12)


class _NoisyMargins:
    """Paths to two logits whose margin has normal noise in a share of the rows, and labels."""

    def __init__(self, n, noise, share=1.0):
        self.rng = np.random.default_rng(0)
        self.noise = np.where(np.arange(n) < share * n, noise, 0.0)
        self.margin = self.rng.normal(0, 3, n)
        truth = self.margin + self.noise * self.rng.normal(size=n)
        self.y = torch.as_tensor(self.rng.random(n) < 1 / (1 + np.exp(-truth))).long()
        self.factor = 1.0

    def with_scales(self, scales):
        self.factor = scales.shared
        return self

    def draw(self, n_paths):
        z = self.rng.normal(size=(n_paths // 2, len(self.y)))
        noise = self.factor * self.noise * np.concatenate([z, -z])
        logits = torch.as_tensor(self.margin + noise)[..., None]
        return torch.cat([torch.zeros_like(logits), logits], 2)

    def exact_nll(self, temperature):
        x, weight = np.polynomial.hermite_e.hermegauss(81)
        margins = self.margin + self.factor * self.noise * x[:, None]
        p = weight / weight.sum() @ (1 / (1 + np.exp(-margins / temperature)))
        return -np.log(np.where(self.y == 1, p, 1 - p)).mean()


@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_the_loss_of_all_paths_is_estimated_from_eight(noise):
    path = _NoisyMargins(100_000, noise)
    logits, exact = path.draw(8), path.exact_nll(1.0)
    eight = float(path_nll(logits, path.y, 1.0))
    assert eight > exact + 0.0005
    found = float(all_paths_nll(logits, path.y, 1.0))
    assert found == pytest.approx(exact, abs=0.5 * (eight - exact))
    weight = (torch.arange(100_000) < 500).double()
    some = all_paths_nll(logits[:, :500], path.y[:500], 1.0)
    assert float(all_paths_nll(logits, path.y, 1.0, weight)) == pytest.approx(float(some))


def test_paths_get_the_noise_that_is_best_for_many_of_them(monkeypatch):
    path = _NoisyMargins(20_000, 2.0, share=0.75)
    distance = torch.linspace(-1, 1, 20_000)

    def propagate_all(path, backbone, inputs, noise, device, common):
        logits = path.draw(8 if noise else 2)
        return SimpleNamespace(outcome=logits * torch.exp(distance)[:, None], distance=distance)

    held_out = SimpleNamespace(inputs=None, y=path.y, weight=None)
    monkeypatch.setattr(_calibration, "propagate_all", propagate_all)
    monkeypatch.setattr(_calibration, "_random_order", lambda *args: held_out)
    monkeypatch.setattr(_calibration, "PathNoise", SimpleNamespace(of=lambda *args: True))
    found = _calibrate_sampling(path, None, held_out, NoiseScales(1.0, 0.0, 1.0), 0, "cpu")
    few, many = {}, {}
    for factor in (0.0, *_calibration.SHRINKAGE):
        path.with_scales(NoiseScales(factor))
        temperature, few[factor] = fit_temperature(path.draw(8), path.y)
        many[factor] = path.exact_nll(temperature)
    assert found.scales.shared == min(many, key=many.get) != min(few, key=few.get)
    assert found.nll == pytest.approx(min(many.values()), abs=1e-3)


def _linearised(margin, variance):
    """Return two-class rows whose margin has the given variance under unit shared noise."""
    n = len(margin)
    logits = torch.stack([torch.zeros(n), margin], 1).double()
    top = torch.arange(2).expand(n, 2)
    shared = torch.zeros(n, 1, 2, 2, dtype=torch.float64)
    shared[:, 0, 1, 1] = variance
    zeros = torch.zeros(n, 1, dtype=torch.float64)
    return LinearisedPath(logits, top, shared, torch.zeros_like(shared), zeros, zeros[:, 0])


def test_noise_is_found_where_labels_show_it():
    generator = torch.Generator().manual_seed(0)
    margin = 4 * torch.randn(4000, generator=generator)
    variance = torch.where(torch.arange(4000) % 2 == 0, 36.0, 0.01).double()
    noise = variance.sqrt() * torch.randn(4000, generator=generator).double()
    y = _labels(torch.stack([torch.zeros(4000).double(), margin + noise], 1))
    fit = fit_noise(_linearised(margin, variance), y, distance=False)
    assert fit.scales.shared == pytest.approx(1.0, rel=0.25)
    assert fit.temperature == pytest.approx(1.0, rel=0.15)
    assert fit.nll < fit_temperature(_linearised(margin, variance).logits[None], y)[1] - 0.01


def test_no_noise_is_reported_where_labels_show_none():
    margin = 3 * torch.randn(500, generator=torch.Generator().manual_seed(0))
    y = _labels(torch.stack([torch.zeros(500), margin], 1))
    fit = fit_noise(_linearised(margin, torch.ones(500).double()), y)
    assert not fit.has_noise
    assert fit.scales.distance == pytest.approx(0, abs=0.02)
    assert fit.temperature == pytest.approx(1.0, rel=0.15)


def test_noise_has_to_pay_for_its_two_scales():
    decisions = []
    for seed, spread in ((1, 36.0), (2, 0.3)):
        generator = torch.Generator().manual_seed(seed)
        margin = 4 * torch.randn(400, generator=generator)
        variance = torch.where(torch.arange(400) % 2 == 0, spread, 0.01).double()
        noise = variance.sqrt() * torch.randn(400, generator=generator).double()
        y = _labels(torch.stack([torch.zeros(400).double(), margin + noise], 1), seed)
        decisions.append(fit_noise(_linearised(margin, variance), y, distance=False).has_noise)
    assert decisions == [True, False]


def _with_distance(margin, distance):
    law = _linearised(margin, torch.zeros(len(margin)).double())
    return replace(law, distance=distance, start=distance[:, None])


def test_temperature_grows_with_the_distance_where_labels_show_it():
    generator = torch.Generator().manual_seed(0)
    margin = 4 * torch.randn(6000, generator=generator)
    distance = torch.randn(6000, generator=generator).double()
    logits = torch.stack([torch.zeros(6000).double(), margin / torch.exp(0.4 * distance)], 1)
    fit = fit_noise(_with_distance(margin, distance), _labels(logits))
    assert fit.scales.distance == pytest.approx(0.4, abs=0.08)
    assert fit.temperature == pytest.approx(1.0, rel=0.1)
    expected = fit.temperature * np.exp(fit.scales.distance * np.array([-1.0, 2.0]))
    np.testing.assert_allclose(fit.temperature_at(torch.tensor([-1.0, 2.0]))[:, 0], expected)


def test_perturbed_rows_tell_what_clean_rows_cannot():
    generator = torch.Generator().manual_seed(0)
    margin = 4 * torch.randn(1000, generator=generator)
    near = torch.zeros(1000).double()  # all as far as each other: they say nothing of growth
    clean = _with_distance(margin, near)
    y = _labels(torch.stack([near, margin.double()], 1))
    far = torch.full((1000,), 2.0).double()
    y_far = _labels(torch.stack([near, margin.double() / np.exp(0.8)], 1), seed=1)
    alone = fit_noise(clean, y)
    told = fit_noise(clean, y, perturbed=(_with_distance(margin, far), y_far, None))
    assert alone.scales.distance < 0.05
    assert told.scales.distance == pytest.approx(0.4, abs=0.1)
    assert told.nll == pytest.approx(alone.nll, abs=1e-3)  # at no price where nothing is far


def test_perturbed_rows_without_weight_tell_nothing():
    margin = 4 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    near = torch.zeros(1000).double()
    clean = _with_distance(margin, near)
    y = _labels(torch.stack([near, margin.double()], 1))
    far = _with_distance(margin, near + 2)
    y_far = torch.where(torch.arange(1000) < 500, _labels(far.logits / 2), y)
    weight = (torch.arange(1000) < 500).double()
    weighted, dropped, unweighted = (
        fit_noise(clean, y, perturbed=part).scales.distance
        for part in (
            (far, y_far, weight),
            (far.take(slice(500)), y_far[:500], None),
            (far, y_far, None),
        )
    )
    assert weighted == pytest.approx(dropped, rel=1e-4)
    assert weighted > unweighted + 0.05


def test_noise_is_fitted_where_the_caller_wants_no_gradients():
    margin = 4 * torch.randn(200, generator=torch.Generator().manual_seed(0))
    law = _with_distance(margin, torch.zeros(200).double())
    y = _labels(law.logits)
    with torch.no_grad():
        found = fit_noise(law, y)
    assert found == fit_noise(law, y)


def test_weighted_rows_count_as_many_as_their_effective_number():
    y = torch.zeros(4)
    assert effective_size(y, None) == 4
    assert effective_size(y, torch.tensor([2.0, 2.0, 0.0, 0.0])) == pytest.approx(2)
    assert effective_size(y, torch.tensor([3.0, 1.0, 0.0, 0.0])) == pytest.approx(1.6)


def test_growth_that_costs_ordinary_rows_is_refused():
    generator = torch.Generator().manual_seed(0)
    margin = 4 * torch.randn(1000, generator=generator)
    distance = torch.randn(1000, generator=generator).double()
    y = _labels(torch.stack([torch.zeros(1000), margin], 1))  # distance does not matter here
    copies = _with_distance(margin, distance + 3)
    random = torch.randint(2, (1000,), generator=generator)
    clean = _with_distance(margin, distance)
    weighty = fit_noise(clean, y, perturbed=(copies, random, None))
    t, nll = fit_temperature(clean.logits[None], y)
    assert 1000 * (weighty.nll - nll) <= 1
    # The largest weight that is cheap enough is taken, and here it is not the first.
    loss = _NoiseLoss((clean, y, None), (copies, random, None), seed=0)
    tried = {w: loss.minimise(False, w, np.log(t)) for w in PERTURBED_WEIGHTS}
    cheap = [w for w in PERTURBED_WEIGHTS if 1000 * (tried[w][1] - nll) <= 1]
    assert 0 < cheap[0] < PERTURBED_WEIGHTS[0]
    assert weighty.scales.distance == tried[cheap[0]][0][2]


def test_paths_are_tried_on_random_rows_of_sorted_data_with_draws_of_their_own(monkeypatch):
    backbone, _ = ALL["vit"]()
    x = torch.randn(90, 1, 16, 16)
    y = torch.arange(90) // 30
    same = x[:1].expand_as(x).numpy()  # only draws can make the rows differ
    held_out = LabelledInputs(EncodedInputs({"x": Dense(same)}), y, torch.ones(90))
    monkeypatch.setattr(_calibration, "MAX_NOISE_ROWS", 20)
    noisy = Calibration(NoiseScales(0.1, 0.1, 0.2), 1.0, 0.0)
    monkeypatch.setattr(_calibration, "fit_noise", lambda *args, **kwargs: noisy)
    seen, drawn = [], []

    def spy(logits, y, weight=None):
        seen.append(y)
        drawn.append(logits)
        return fit_temperature(logits, y, weight)

    monkeypatch.setattr(_calibration, "fit_temperature", spy)
    grid = time_grid(4, 2)
    with backbone.frozen():
        statistics = collect_statistics(backbone, [{"x": x}], steps_of(grid), False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        path = GaussianPath(BlockwiseMean(backbone, grid), covariance)
        calibrate(path, backbone, held_out)
    assert [len(part) for part in seen] == [90, 20, 20, 20, 20]
    assert torch.equal(torch.unique(seen[1]), torch.arange(3))
    assert drawn[-1].shape[:2] == (_calibration.N_SAMPLED, 20)
    assert not torch.allclose(drawn[-1][:, 0], drawn[-1][:, -1])
