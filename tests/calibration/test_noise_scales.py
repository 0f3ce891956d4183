"""Noise scales and temperature against optima that are known."""

import numpy as np
import pytest
import torch
from known_laws import labels_of, linearised, with_distance
from sklearn.exceptions import ConvergenceWarning

from sklearn_diffuq._calibration import noise_scales
from sklearn_diffuq._calibration.calibration import Calibration
from sklearn_diffuq._calibration.noise_scales import (
    BOUNDS,
    PERTURBED_WEIGHTS,
    WITHOUT_NOISE,
    LabelledLaw,
    NoiseLoss,
    NoiseParameters,
    fit_distance,
    fit_noise,
    fit_scales,
)
from sklearn_diffuq._calibration.temperature import fit_temperature, path_nll
from sklearn_diffuq._path.covariance import NO_NOISE, NoiseScales


def test_noise_is_found_where_labels_show_it():
    generator = torch.Generator().manual_seed(0)
    margin = 4 * torch.randn(4000, generator=generator)
    variance = torch.where(torch.arange(4000) % 2 == 0, 36.0, 0.01).double()
    noise = variance.sqrt() * torch.randn(4000, generator=generator).double()
    y = labels_of(torch.stack([torch.zeros(4000).double(), margin + noise], 1))
    fit = fit_noise(LabelledLaw(linearised(margin, variance), y), distance=False)
    assert fit.scales.shared == pytest.approx(1.0, rel=0.25)
    assert fit.temperature == pytest.approx(1.0, rel=0.15)
    assert fit.nll < fit_temperature(linearised(margin, variance).logits[None], y)[1] - 0.01


def test_no_noise_is_reported_where_labels_show_none():
    margin = 3 * torch.randn(500, generator=torch.Generator().manual_seed(0))
    y = labels_of(torch.stack([torch.zeros(500), margin], 1))
    fit = fit_noise(LabelledLaw(linearised(margin, torch.ones(500).double()), y))
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
        y = labels_of(torch.stack([torch.zeros(400).double(), margin + noise], 1), seed)
        decisions.append(
            fit_noise(LabelledLaw(linearised(margin, variance), y), distance=False).has_noise
        )
    assert decisions == [True, False]


def test_temperature_grows_with_the_distance_where_labels_show_it():
    generator = torch.Generator().manual_seed(0)
    margin = 4 * torch.randn(6000, generator=generator)
    distance = torch.randn(6000, generator=generator).double()
    logits = torch.stack([torch.zeros(6000).double(), margin / torch.exp(0.4 * distance)], 1)
    fit = fit_noise(LabelledLaw(with_distance(margin, distance), labels_of(logits)))
    assert fit.scales.distance == pytest.approx(0.4, abs=0.08)
    assert fit.temperature == pytest.approx(1.0, rel=0.1)
    expected = fit.temperature * np.exp(fit.scales.distance * np.array([-1.0, 2.0]))
    np.testing.assert_allclose(fit.temperature_at(torch.tensor([-1.0, 2.0]))[:, 0], expected)


def test_perturbed_rows_tell_what_clean_rows_cannot():
    generator = torch.Generator().manual_seed(0)
    margin = 4 * torch.randn(1000, generator=generator)
    near = torch.zeros(1000).double()  # all as far as each other: they say nothing of growth
    clean = with_distance(margin, near)
    y = labels_of(torch.stack([near, margin.double()], 1))
    far = torch.full((1000,), 2.0).double()
    y_far = labels_of(torch.stack([near, margin.double() / np.exp(0.8)], 1), seed=1)
    alone = fit_noise(LabelledLaw(clean, y))
    told = fit_noise(LabelledLaw(clean, y), LabelledLaw(with_distance(margin, far), y_far))
    assert alone.scales.distance < 0.05
    assert told.scales.distance == pytest.approx(0.4, abs=0.1)
    assert told.nll == pytest.approx(alone.nll, abs=1e-3)  # at no price where nothing is far


def test_perturbed_rows_without_weight_tell_nothing():
    margin = 4 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    near = torch.zeros(1000).double()
    clean = with_distance(margin, near)
    y = labels_of(torch.stack([near, margin.double()], 1))
    far = with_distance(margin, near + 2)
    y_far = torch.where(torch.arange(1000) < 500, labels_of(far.logits / 2), y)
    weight = (torch.arange(1000) < 500).double()
    weighted, dropped, unweighted = (
        fit_noise(LabelledLaw(clean, y), LabelledLaw(*part)).scales.distance
        for part in (
            (far, y_far, weight),
            (far.take(slice(500)), y_far[:500]),
            (far, y_far),
        )
    )
    assert weighted == pytest.approx(dropped, rel=1e-4)
    assert weighted > unweighted + 0.05


def test_noise_is_fitted_where_the_caller_wants_no_gradients():
    margin = 4 * torch.randn(200, generator=torch.Generator().manual_seed(0))
    law = with_distance(margin, torch.zeros(200).double())
    y = labels_of(law.logits)
    with torch.no_grad():
        found = fit_noise(LabelledLaw(law, y))
    assert found == fit_noise(LabelledLaw(law, y))


def test_growth_that_costs_ordinary_rows_is_refused():
    generator = torch.Generator().manual_seed(0)
    margin = 4 * torch.randn(1000, generator=generator)
    distance = torch.randn(1000, generator=generator).double()
    y = labels_of(torch.stack([torch.zeros(1000), margin], 1))  # distance does not matter here
    copies = with_distance(margin, distance + 3)
    random = torch.randint(2, (1000,), generator=generator)
    clean, copies = LabelledLaw(with_distance(margin, distance), y), LabelledLaw(copies, random)
    weighty = fit_noise(clean, copies)
    t, nll = fit_temperature(clean.law.logits[None], y)
    assert 1000 * (weighty.nll - nll) <= 1
    # The largest weight that is cheap enough is taken, and here it is not the first.
    loss = NoiseLoss(clean, copies, seed=0)
    start = NoiseParameters(np.log(t), 0.1)
    tried = {w: loss.minimise(WITHOUT_NOISE, start, w) for w in PERTURBED_WEIGHTS}
    cheap = [w for w in PERTURBED_WEIGHTS if 1000 * (tried[w].nll - nll) <= 1]
    assert 0 < cheap[0] < PERTURBED_WEIGHTS[0]
    assert weighty.scales.distance == tried[cheap[0]].parameters.distance


ALL_NAMES = ("log_shared", "log_token", "distance", "log_temperature")


@pytest.mark.parametrize("names", [ALL_NAMES, ALL_NAMES[::-1], WITHOUT_NOISE, ("log_temperature",)])
def test_unpacking_what_is_packed_gives_the_parameters(names):
    values = {"log_shared": -1.5, "log_token": -0.25, "distance": 0.3, "log_temperature": 0.1}
    parameters = NoiseParameters(**{name: values[name] for name in {*names, "log_temperature"}})
    packed = parameters.pack(names)
    assert packed.tolist() == [values[name] for name in names]
    assert NoiseParameters.unpack(names, torch.tensor(packed)) == parameters


def test_parameters_that_are_not_packed_stay_absent():
    every = NoiseParameters(0.1, 0.3, -1.5, -0.25)
    found = NoiseParameters.unpack(WITHOUT_NOISE, torch.tensor(every.pack(WITHOUT_NOISE)))
    assert found == NoiseParameters(0.1, 0.3)
    assert found.scales == NoiseScales(distance=0.3)
    shared, token = float(np.exp(-1.5)), float(np.exp(-0.25))
    assert every.scales == NoiseScales(shared, token, 0.3)
    with pytest.raises(ValueError, match="argument"):
        NoiseParameters.unpack(WITHOUT_NOISE, torch.zeros(3))


def _noisy(n=400, seed=1):
    """Return rows whose labels show noise, at distances where the temperature differs."""
    generator = torch.Generator().manual_seed(seed)
    margin = 4 * torch.randn(n, generator=generator)
    variance = torch.where(torch.arange(n) % 2 == 0, 36.0, 0.01).double()
    noise = variance.sqrt() * torch.randn(n, generator=generator).double()
    y = labels_of(torch.stack([torch.zeros(n).double(), margin + noise], 1), seed)
    return LabelledLaw(linearised(margin, variance), y)


@pytest.fixture
def optimised(monkeypatch):
    """Return a list that gets the start and the bounds of every fit."""
    calls, minimize = [], noise_scales.minimize

    def spy(function, start, *, bounds, **options):
        calls.append((list(start), bounds))
        return minimize(function, start, bounds=bounds, **options)

    monkeypatch.setattr(noise_scales, "minimize", spy)
    return calls


def test_the_distance_alone_is_fitted_without_noise(optimised):
    loss = NoiseLoss(_noisy(), None, seed=0)
    calibration, weight = fit_distance(loss, Calibration(NO_NOISE, 1.5, 10.0))
    assert weight == PERTURBED_WEIGHTS[0]
    assert not calibration.has_noise
    assert calibration.table is None
    start, bounds = [0.1, np.log(1.5)], [BOUNDS["distance"], BOUNDS["log_temperature"]]
    assert optimised == [(start, bounds)]


@pytest.mark.parametrize("weight", [None, 0.0, 0.3])
def test_scales_are_fitted_with_the_distance_or_without_it(weight, optimised):
    loss = NoiseLoss(_noisy(), None, seed=0)
    fit = fit_scales(loss, 1.5, weight)
    names = ["log_shared", "log_token", "distance", "log_temperature"]
    if weight is None:
        names.remove("distance")
        assert fit.parameters.distance == 0.0
    for (start, bounds), scales in zip(optimised, noise_scales.STARTS, strict=True):
        expected = dict(zip(("log_shared", "log_token"), np.log(scales), strict=True))
        expected |= {"distance": 0.1, "log_temperature": np.log(1.5)}
        assert start == [expected[name] for name in names]
        assert bounds == [BOUNDS[name] for name in names]
    assert fit.parameters.scales.any_noise


@pytest.mark.parametrize(
    ("distance", "n_parameters"), [(False, [3, 3]), (True, [2, 4, 4])], ids=["without", "with"]
)
def test_no_distance_is_fitted_unless_it_is_wanted(distance, n_parameters, optimised):
    found = fit_noise(_noisy(), distance=distance)
    assert [len(start) for start, _ in optimised] == n_parameters
    assert found.has_noise
    assert (found.scales.distance == 0) or distance


def test_a_distance_that_no_weight_makes_cheap_is_left_out(optimised, monkeypatch):
    clean = _noisy()
    monkeypatch.setattr(noise_scales, "TOLERATED_LOSS", -np.inf)
    found = fit_noise(clean, LabelledLaw(clean.law, 1 - clean.y))
    assert [len(start) for start, _ in optimised] == [2] * len(PERTURBED_WEIGHTS) + [3, 3]
    assert found.scales.distance == 0
    assert found.scales == fit_noise(clean, distance=False).scales


def test_what_is_not_named_does_not_move():
    loss = NoiseLoss(_noisy(), None, seed=0)
    fit = loss.minimise(("log_temperature",), NoiseParameters(0.5, 0.7, -1.0, -1.0), 0.0)
    assert (fit.parameters.distance, fit.parameters.log_shared) == (0.0, None)
    temperature, nll = fit_temperature(loss.clean.law.logits[None], loss.clean.y)
    assert float(fit.parameters.log_temperature) == pytest.approx(np.log(temperature), abs=1e-3)
    assert fit.nll == pytest.approx(nll, abs=1e-6)


def test_the_loss_is_that_of_drawn_logits_at_the_temperature_of_each_row():
    margin = torch.linspace(-3, 3, 50)
    law = with_distance(margin, torch.linspace(-1, 2, 50).double())
    law.shared[:, 0, 1, 1] = 4.0
    sample = LabelledLaw(law, labels_of(law.logits), torch.linspace(0, 1, 50).double())
    loss = NoiseLoss(sample, None, seed=0)
    temperature = 1.2 * torch.exp(0.3 * law.distance)[:, None]
    drawn = law.sample(0.5, 0.1, 0.3, loss.z)
    for noise, logits in (((np.log(0.5), np.log(0.1)), drawn), ((), law.logits[None])):
        parameters = NoiseParameters(torch.tensor(np.log(1.2)), 0.3, *noise)
        expected = path_nll(logits, sample.y, temperature, sample.weight)
        assert float(loss.nll(parameters, sample)) == pytest.approx(float(expected), rel=1e-9)


def test_a_fit_that_does_not_converge_is_told(monkeypatch):
    minimize = noise_scales.minimize

    def stopped(*args, **options):
        return minimize(*args, **options, options={"maxiter": 1})

    monkeypatch.setattr(noise_scales, "minimize", stopped)
    with pytest.warns(ConvergenceWarning, match="did not converge") as told:
        fit_noise(_noisy(), distance=False)
    assert told[0].filename == __file__


@pytest.mark.parametrize(("weight", "expected"), [(None, 0.0), (0.0, 0.0), (0.3, 0.3)])
def test_perturbed_copies_have_the_same_weight_with_noise(weight, expected, monkeypatch):
    clean = _noisy()
    loss = NoiseLoss(clean, LabelledLaw(clean.law, 1 - clean.y), seed=0)
    minimise, weights = loss.minimise, []

    def spy(names, start, perturbed_weight):
        weights.append(perturbed_weight)
        return minimise(names, start, perturbed_weight)

    monkeypatch.setattr(loss, "minimise", spy)
    fit = fit_scales(loss, 1.5, weight)
    assert weights == [expected, expected]
    unweighted = fit_scales(NoiseLoss(clean, None, seed=0), 1.5, weight)
    assert (fit.nll > unweighted.nll + 1e-3) == bool(weight)
