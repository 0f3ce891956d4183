"""Agreement with other packages where definitions match.

None of them is required: everything they confirm is also tested without them.
"""

import importlib
import warnings

import numpy as np
import pytest
from scipy.special import softmax

from sklearn_diffuq.metrics import (
    accuracy_at_coverage,
    area_under_risk_coverage_curve,
    augrc,
    calibration_refinement_decomposition,
    expected_calibration_error,
    fpr_at_95_tpr,
    risk_coverage_curve,
    smooth_calibration_error,
    uncertainty_decomposition,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def peer(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} cannot be imported: {error}")


@pytest.fixture
def torch_problem(problem):
    torch = peer("torch")
    y, proba = problem
    return torch.as_tensor(y), torch.as_tensor(proba)


@pytest.mark.parametrize("n_bins", [10, 15])
def test_netcal_ece(problem, binary_problem, n_bins):
    ECE = peer("netcal.metrics").ECE
    y, proba = problem
    ours = expected_calibration_error(y, proba, n_bins=n_bins)
    assert ours == pytest.approx(ECE(n_bins).measure(proba, y), abs=1e-9)
    y, p = binary_problem
    ours = expected_calibration_error(y, p, n_bins=n_bins, kind="positive")
    assert ours == pytest.approx(ECE(n_bins).measure(p, y), abs=1e-9)


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_torchmetrics_calibration_error(torch_problem, binary_problem, norm):
    functional = peer("torchmetrics.functional.classification")
    y, proba = torch_problem
    theirs = functional.multiclass_calibration_error(proba, y, 4, n_bins=15, norm=norm)
    ours = expected_calibration_error(y, proba, norm=norm)
    assert ours == pytest.approx(theirs.item(), abs=1e-6)
    torch = peer("torch")
    y, p = (torch.as_tensor(values) for values in binary_problem)
    theirs = functional.binary_calibration_error(p, y, n_bins=15, norm=norm)
    ours = expected_calibration_error(y, p, norm=norm, kind="positive")
    assert ours == pytest.approx(theirs.item(), abs=1e-6)
    theirs = functional.multiclass_calibration_error(
        torch.stack([1 - p, p], dim=1), y, 2, n_bins=15, norm=norm
    )
    assert expected_calibration_error(y, p, norm=norm) == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_torch_uncertainty_adaptive_and_classwise(torch_problem, norm):
    tu = peer("torch_uncertainty.metrics.classification")
    y, proba = torch_problem
    # 15 divides 3000; for other sizes, the packages distribute the remainder differently.
    metric = tu.AdaptiveCalibrationError("multiclass", num_bins=15, norm=norm, num_classes=4)
    metric.update(proba, y)
    ours = expected_calibration_error(y, proba, strategy="quantile", norm=norm)
    assert ours == pytest.approx(metric.compute().item(), abs=1e-6)
    module = peer("torch_uncertainty.metrics.classification.calibration")
    metric = module.ClasswiseCalibrationError(4, num_bins=15, norm=norm)
    metric.update(proba, y)
    ours = expected_calibration_error(y, proba, kind="classwise", norm=norm)
    assert ours == pytest.approx(metric.compute().item(), abs=1e-6)


def test_torch_uncertainty_selective(torch_problem):
    tu = peer("torch_uncertainty.metrics.classification")
    y, proba = torch_problem
    coverage, risk = risk_coverage_curve(y, proba)
    n = len(risk)
    values = {}
    for name in ["AURC", "AUGRC", "RiskAt80Cov"]:
        metric = getattr(tu, name)()
        metric.update(proba, y)
        values[name] = metric.compute().item()
    # Theirs is the trapezoidal area over [1/n, 1], rescaled to length one.
    stretched = np.trapezoid(risk, coverage) / (1 - 1 / n)
    assert values["AURC"] == pytest.approx(stretched, abs=1e-6)
    assert values["AURC"] == pytest.approx(area_under_risk_coverage_curve(y, proba), abs=1 / n)
    stretched = np.trapezoid(coverage * risk, coverage) / (1 - 1 / n)
    assert values["AUGRC"] == pytest.approx(stretched, abs=1e-6)
    assert values["AUGRC"] == pytest.approx(augrc(y, proba), abs=1 / n)
    assert values["RiskAt80Cov"] == pytest.approx(1 - accuracy_at_coverage(y, proba), abs=1e-6)


@pytest.mark.parametrize("decimals", [1, 8])
def test_torch_uncertainty_fpr95(decimals):
    tu = peer("torch_uncertainty.metrics.classification")
    torch = peer("torch")
    rng = np.random.default_rng(0)
    inside = rng.normal(0, 1, 500).round(decimals)
    outside = rng.normal(-2, 2, 300).round(decimals)
    metric = tu.FPR95(pos_label=1)
    metric.update(
        -torch.as_tensor(np.r_[inside, outside]), torch.as_tensor(np.repeat([0, 1], [500, 300]))
    )
    assert fpr_at_95_tpr(inside, outside) == pytest.approx(metric.compute().item(), abs=1e-6)


def test_torch_uncertainty_mutual_information():
    tu = peer("torch_uncertainty.metrics.classification")
    torch = peer("torch")
    draws = np.random.default_rng(0).dirichlet(np.ones(5), size=(8, 30))
    metric = tu.MutualInformation(reduction="none")
    metric.update(torch.as_tensor(draws).transpose(0, 1))
    parts = uncertainty_decomposition(draws)
    np.testing.assert_allclose(parts.epistemic, metric.compute(), atol=1e-6)
    metric = tu.Entropy(reduction="none")
    metric.update(torch.as_tensor(draws).transpose(0, 1))
    np.testing.assert_allclose(parts.aleatoric, metric.compute(), atol=1e-6)


def test_torch_uncertainty_smooth_error(torch_problem):
    module = peer("torch_uncertainty.metrics.classification.calibration")
    y, proba = torch_problem
    metric = module.SmoothCalibrationError(kernel_type="reflected")
    metric.update(proba.float(), y)
    ours = smooth_calibration_error(y, proba.float())
    assert ours == pytest.approx(metric.compute().item(), abs=1e-6)


def test_mapie_ece(problem):
    mapie = peer("mapie.metrics.calibration")
    y, proba = problem
    # Their y_true is correctness, and num_bins is the number of edges.
    correct = (proba.argmax(axis=1) == y).astype(int)
    theirs = mapie.expected_calibration_error(
        correct, proba.max(axis=1), num_bins=16, split_strategy="uniform"
    )
    assert expected_calibration_error(y, proba) == pytest.approx(theirs, abs=1e-9)
    theirs = mapie.expected_calibration_error(
        correct, proba, num_bins=16, split_strategy="uniform", classwise=True, class_labels=y
    )
    ours = expected_calibration_error(y, proba, kind="classwise")
    assert ours == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("sharpness", [0.5, 0.97, 2.0])
@pytest.mark.parametrize("n", [5, 300, 3000])
def test_relplot_smooth_error(problem, sharpness, n):
    relplot = peer("relplot")
    y, proba = problem
    y, proba = y[:n], softmax(sharpness * np.log(proba[:n]), axis=1)
    confidence, correct = proba.max(axis=1), (proba.argmax(axis=1) == y) * 1.0
    ours = smooth_calibration_error(y, proba, labels=range(4))
    assert ours == pytest.approx(relplot.smECE(confidence, correct), abs=1e-9)


def test_probmetrics_calibration_and_refinement(problem):
    metrics = peer("probmetrics.metrics")
    y, proba = problem
    names = ["calib-err_logloss_ts-mix_all", "refinement_logloss_ts-mix_all"]
    tensors = [peer("torch").as_tensor(values) for values in problem]
    theirs = metrics.Metrics.from_names(names).compute_all_from_labels_probs(*tensors)
    everything = np.arange(len(y))
    ours = calibration_refinement_decomposition(y, proba, cv=[(everything, everything)])
    assert ours.calibration == pytest.approx(float(theirs[names[0]]), abs=1e-6)
    assert ours.refinement == pytest.approx(float(theirs[names[1]]), abs=1e-6)
