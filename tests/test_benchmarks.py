"""The benchmark harness compares fairly, resumes stopped runs, and reports all results."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import inference
import numpy as np
import pandas as pd
import pytest
import torch
from costs import parameters
from evaluation import (
    check_logits,
    detection,
    divergence_from_raters,
    log_probabilities,
    measure,
)
from harness import Part, Problem, prepare, run
from methods import Method, backbone, diffusions, uncalibrated
from rendering import html, markdown, rst
from report import NO_RESULTS, name_of, run_section, write_report, write_rst
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from store import COLUMNS, Store
from summaries import incomplete, mean_ranks, outliers, over_parts, ranks_over_parts

from sklearn_diffuq.metrics._temperature import fit_temperature

SCIKIT_LEARN = backbone()


def samples_of(first_label=0, n_classes=3):
    """Return training, calibration and test samples with labels from `first_label` on."""
    X, y = make_classification(
        900, 10, n_informative=6, n_classes=n_classes, class_sep=0.7, random_state=0
    )
    y = y + first_label
    return (X[:300], y[:300]), (X[300:600], y[300:600]), (X[600:], y[600:])


def problem_of(seed=0, first_label=0, n_classes=3):
    """Return a problem with a test set, corrupted samples, and outliers."""
    train, calibration, (X, y) = samples_of(first_label, n_classes)
    rng = np.random.default_rng(seed)
    parts = [
        Part("test", lambda: X, y),
        Part("noise", lambda: X + rng.normal(size=X.shape), y, severity=2),
        Part("far", lambda: X + 5, None),
    ]
    return Problem(LogisticRegression(C=1e5, max_iter=1000), train, calibration, parts)


def values(results, **equal):
    for column, value in equal.items():
        results = results[results[column] == value]
    return results["value"].to_numpy()


class Probabilities(ClassifierMixin, BaseEstimator):
    """Predicts the logits of index X[:, 0], times eight, as probabilities rounded to float32."""

    def __init__(self, logits):
        self.logits = logits
        self.classes_ = np.arange(logits.shape[1])

    def fit(self, X, y):
        return self

    def predict_proba(self, X):
        return softmax((8 * self.logits[X[:, 0]]).astype(np.float32), axis=1)

    def predict(self, X):
        return self.predict_proba(X).argmax(axis=1)


class Logits(Probabilities):
    """Offers the logits too."""

    def decision_function(self, X):
        return 8 * self.logits[X[:, 0]]


@pytest.mark.parametrize(("first_label", "n_classes"), [(1, 3), (10, 3), (1, 2)])
def test_scikit_learn_collapses_on_labels_that_do_not_start_at_zero(first_label, n_classes):
    train, calibration, (X, y) = samples_of(first_label, n_classes)
    frozen = FrozenEstimator(LogisticRegression(C=1e5, max_iter=1000).fit(*train))
    trapped = CalibratedClassifierCV(frozen, method="temperature").fit(*calibration)
    assert log_loss(y, trapped.predict_proba(X)) > log_loss(y, frozen.predict_proba(X)) + 0.1


@pytest.mark.parametrize(("first_label", "n_classes"), [(0, 3), (1, 3), (-1, 2), (10, 2)])
def test_the_harness_encodes_labels(tmp_path, first_label, n_classes):
    store = Store(tmp_path)
    store.start("test", {})
    problems = {"table": lambda seed: problem_of(seed, first_label, n_classes)}
    assert not run(store, problems, {m: SCIKIT_LEARN[m] for m in ("backbone", "temperature")}, [0])
    nll = {
        (method, scaling): values(
            store.results, method=method, scaling=scaling, part="test", metric="nll"
        )
        for method in ("backbone", "temperature")
        for scaling in ("raw", "temperature")
    }
    assert nll["temperature", "raw"] <= nll["backbone", "raw"] + 0.01
    # With encoded labels and logits, scikit-learn fits the same temperature as the harness.
    assert nll["temperature", "raw"] == pytest.approx(nll["backbone", "temperature"], abs=1e-4)
    assert nll["temperature", "temperature"] == pytest.approx(nll["temperature", "raw"], abs=1e-4)


def test_a_temperature_is_fitted_to_logits_not_to_rounded_probabilities():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5)) * 3
    y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    X = np.arange(4000)[:, None]
    rounded = FrozenEstimator(Probabilities(logits))
    trapped = CalibratedClassifierCV(rounded, method="temperature").fit(X, y)
    exact = log_probabilities(Logits(logits), X)
    temperature = fit_temperature(exact, y)
    assert temperature == pytest.approx(8, rel=0.05)
    ours = log_loss(y, softmax(exact / temperature, axis=1))
    proba = trapped.predict_proba(X).astype(np.float64)
    assert log_loss(y, proba / proba.sum(axis=1, keepdims=True)) > ours + 0.01


def test_every_sklearn_method_has_the_same_labels_and_probabilities():
    problem = prepare(problem_of(first_label=1))
    assert set(problem.train[1]) == {0, 1, 2}
    for method in SCIKIT_LEARN.values():
        fitted = method.fit(problem.estimator, problem.train, problem.calibration, 0)
        assert list(fitted.classes_) == [0, 1, 2]
        X = problem.parts[0].make()
        proba = np.exp(log_probabilities(fitted, X))
        np.testing.assert_allclose(proba, fitted.predict_proba(X), atol=1e-12)


def test_logits_that_disagree_with_the_probabilities_are_refused():
    classifier = Logits(np.eye(3))
    classifier.predict_proba = lambda X: np.full((len(X), 3), 1 / 3)
    with pytest.raises(ValueError, match="must be the same"):
        check_logits(classifier, np.arange(3)[:, None])


def test_metrics_match_scikit_learn():
    rng = np.random.default_rng(0)
    log_proba = log_softmax(rng.normal(size=(200, 3)), axis=1)
    y = rng.integers(2, size=200)  # one class is missing from the labels
    found = measure(y, log_proba)
    proba = np.exp(log_proba)
    assert found["nll"] == pytest.approx(log_loss(y, proba, labels=[0, 1, 2]))
    assert found["accuracy"] == 100 * np.mean(proba.argmax(1) == y)
    assert found["brier"] == pytest.approx(np.mean(np.sum((proba - np.eye(3)[y]) ** 2, axis=1)))


def test_divergence_from_the_raters():
    shares = np.array([[0.25, 0.75], [1.0, 0.0], [np.nan, np.nan]])
    assert divergence_from_raters(shares[:2], np.log([[0.25, 0.75], [0.5, 0.5]])) == (
        pytest.approx(np.log(2) / 2)
    )
    assert divergence_from_raters(shares, np.log(np.full((3, 2), 0.5))) == pytest.approx(
        (np.log(2) + 0.25 * np.log(0.5) + 0.75 * np.log(1.5)) / 2
    )


def test_larger_scores_mean_in_distribution():
    found = detection({"a": np.array([1.0, 2, 3])}, {"a": np.array([-1.0, 0])})
    assert found == {"auroc, a": 1, "fpr95, a": 0}


def test_a_stopped_run_resumes(tmp_path):
    fits = []

    def counted(frozen, train, calibration, seed):
        fits.append(seed)
        return frozen

    def stop(*args):
        raise KeyboardInterrupt

    problems = {"table": problem_of}
    store = Store(tmp_path)
    store.start("test", {"rows": 1})
    with pytest.raises(KeyboardInterrupt):
        run(store, problems, {"first": Method(counted), "second": Method(stop)}, [0])
    first = pd.read_csv(tmp_path / "results.csv")

    again = Store(tmp_path)
    again.start("test", {"rows": 1})
    run(again, problems, {"first": Method(counted), "second": Method(uncalibrated)}, [0, 1])
    assert fits == [0, 1]
    assert again.done() == {("table", s, m) for s in (0, 1) for m in ("first", "second")}
    pd.testing.assert_frame_equal(again.results.iloc[: len(first)], first)
    assert not again.results.duplicated(
        ["problem", "seed", "method", "part", "severity", "scaling", "metric"]
    ).any()
    with pytest.raises(SystemExit, match="for other settings"):
        Store(tmp_path).start("test", {"rows": 2})


def test_a_failure_leaves_the_others_and_is_reported(tmp_path):
    def missing(*args):
        raise ImportError("No module named 'rare'")

    def broken(*args):
        raise ValueError("too few rows")

    methods = {"rare": Method(missing), "broken": Method(broken), "backbone": Method(uncalibrated)}
    store = Store(tmp_path)
    store.start("test", {})
    failures = run(store, {"table": problem_of}, methods, [0])
    assert store.done() == {("table", 0, "backbone")}
    for path in write_report(store, failures):
        text = path.read_text()
        assert "rare left out, a package is missing: No module named" in text
        assert "broken failed on table, seed 0: ValueError: too few rows" in text


def test_variants_of_the_prediction_share_a_fit():
    paths = {"inference": "sampling", "n_samples": 2}
    variants = {"a": {}, "b": {"inference": "mean"}, "c": {"rank": 4}, "d": paths}
    made = diffusions(variants, max_epochs=1)
    assert made["a"].fit is made["b"].fit
    assert made["c"].fit is not made["a"].fit
    assert made["a"].then == {"inference": "moments"}
    assert made["b"].then == {"inference": "mean"}
    assert made["d"].fit is made["a"].fit
    assert made["d"].then == paths


@pytest.fixture(scope="module", params=[1, 2], ids=["one problem", "several problems"])
def finished(request, tmp_path_factory):
    """A finished run of two seeds."""
    store = Store(tmp_path_factory.mktemp("run"))
    store.start("tables" if request.param > 1 else "vision", {})
    problems = {f"table {i}": problem_of for i in range(request.param)}
    run(store, problems, SCIKIT_LEARN, [0, 1])
    return store


def test_the_report_has_every_result_and_every_command(finished):
    paths = write_report(finished)
    assert [path.name for path in paths] == ["report.md", "report.html"]
    lines = paths[0].read_text().splitlines()
    keys = ["problem", "part", "severity", "scaling", "method", "metric"]
    for key in finished.results[keys].drop_duplicates().itertuples(index=False):
        start = "| " + " | ".join(map(str, key)) + " |"
        assert any(line.startswith(start) for line in lines), start
    for path in paths:
        text = path.read_text()
        assert finished.info["runs"][0]["date"] in text
        assert "scikit-learn" in text
        assert "python examples/benchmarks/" in text
    assert paths[1].read_text().count("data:image/png") == lines_with_pictures(lines) > 0


def lines_with_pictures(lines):
    return sum(line.startswith("![") for line in lines)


def test_every_command_is_a_bullet(tmp_path):
    core = pytest.importorskip("docutils.core")
    store = Store(tmp_path)
    store.start("vision", {})
    run(store, {"images": problem_of}, SCIKIT_LEARN, [0])
    store.start("vision", {})
    first, second = store.info["runs"]
    first["command"] = "python a.py"
    second |= {"machine": "another machine", "command": "python b.py"}
    section = run_section(store)
    assert section.bullets == (
        f"{first['date']}: `python a.py` (environment 1)",
        f"{second['date']}: `python b.py` (environment 2)",
    )
    assert "Environment 2: another machine; sklearn_diffuq" in section.text
    tree = core.publish_doctree(rst("Title", [section], ""), settings_overrides={"halt_level": 2})
    [bullets] = tree.findall(lambda node: node.tagname == "bullet_list")
    assert [item.astext().split(": ")[1] for item in bullets] == [
        "python a.py (environment 1)",
        "python b.py (environment 2)",
    ]
    assert "\n\n- " in markdown("Title", [section])
    assert html("Title", [section]).count("<li>") == 2
    second["machine"] = first["machine"]
    assert "(environment" not in " ".join(run_section(store).bullets)


def test_a_folder_with_a_title_of_its_own_is_a_section_of_its_own(tmp_path):
    for folder, expected in (("vision-passes", "vision-passes"), ("mine", "vision")):
        store = Store(tmp_path / folder)
        store.start("vision", {})
        assert name_of(store) == expected


def test_what_the_path_needs_counts_in_place_of_the_blocks():
    frozen = SimpleNamespace(backbone_=SimpleNamespace(module=torch.nn.Linear(9, 10)))
    diffusion = SimpleNamespace(n_block_parameters_=90, n_parameters_=20)
    assert parameters(diffusion, frozen) == 100 - 90 + 20


def test_means_and_intervals_in_the_report(finished):
    nll = values(finished.results, problem="table 0", part="noise", metric="nll", scaling="raw",
                 method="sigmoid")  # fmt: skip
    half = 12.7062 * nll.std(ddof=1) / np.sqrt(2)
    expected = f"| sigmoid | nll | {nll.mean():.4f} ± {half:.4f} | 2 |"
    assert expected in write_report(finished)[0].read_text()


def test_mean_ranks_and_what_is_incomplete():
    nll = {
        "a": {"good": 0.1, "bad": 0.3, "rare": 0.2},
        "b": {"good": 0.3, "bad": 0.4},
        "c": {"good": 0.2, "bad": 0.1},
        "d": {"good": 0.2},  # the run stopped here
    }
    results = pd.DataFrame(
        [(p, 0, m, "test", 0, s, "nll", v) for p, values in nll.items() for m, v in values.items()
         for s in ("raw", "temperature")],
        columns=COLUMNS,
    )  # fmt: skip
    ranks, _ = mean_ranks(results)
    assert dict(ranks["mean rank, raw"]) == {"good": "1.33", "bad": "1.67"}
    assert incomplete(results) == ["bad (3 of 4 runs)", "rare (1 of 4 runs)"]


def test_ranks_and_means_over_parts():
    values = {  # method -> NLL on the test part, and on two severities of noise
        "good": (0.1, 0.2, 0.3),
        "fair": (0.2, 0.1, 0.4),
        "bad": (0.3, 0.3, 0.5),
    }
    parts = (("test", 0), ("noise", 1), ("noise", 2))
    results = pd.DataFrame(
        [("p", seed, m, *part, "temperature", metric, v) for m, row in values.items()
         for part, v in zip(parts, row) for metric in ("nll", "brier") for seed in (0, 1)],
        columns=COLUMNS,
    )  # fmt: skip
    # A seed with results of one method only must not count.
    other = results[(results["seed"] == 0) & (results["method"] == "bad")].assign(seed=2, value=0.0)
    ranks = ranks_over_parts(pd.concat([results, other]))
    assert dict(ranks["mean rank, nll"]) == {"good": "1.33", "fair": "1.67", "bad": "3.00"}
    means = over_parts(results[results["severity"] > 0]).set_index(["method", "seed", "metric"])
    assert means["value"]["fair", 1, "nll"] == pytest.approx(0.25)


def test_outliers_have_a_mean_over_their_kinds():
    kinds = {"digits": 0.6, "blank": 0.8, "unseen letters": 0.3}
    rows = [("p", seed, "m", part, 0, "raw", "auroc, entropy", value + 0.1 * seed)
            for seed in (0, 1) for part, value in kinds.items()]  # fmt: skip
    rows += [(*row[:6], "fpr95, entropy", 0.5) for row in rows]
    table = outliers(pd.DataFrame(rows, columns=COLUMNS)).set_index("part")
    half = 12.7062 * 5  # 70 and 80 percent
    assert table["auroc"]["mean"] == f"75.0 ± {half:.1f}"
    assert table["auroc"]["unseen mean"] == f"35.0 ± {half:.1f}"


def test_the_documentation_includes_the_available_results(finished, tmp_path):
    core = pytest.importorskip("docutils.core")
    write_rst([], tmp_path)
    assert (tmp_path / "all.inc").read_text().strip() == NO_RESULTS
    write_rst([finished], tmp_path)
    name = finished.info["benchmark"]
    assert (tmp_path / "all.inc").read_text().strip() == f".. include:: {tmp_path.name}/{name}.inc"
    tree = core.publish_doctree(
        (tmp_path / f"{name}.inc").read_text(), settings_overrides={"halt_level": 2}
    )
    assert len(list(tree.findall(lambda node: node.tagname == "table"))) > 2
    for image in tree.findall(lambda node: node.tagname == "image"):
        assert (tmp_path.parent / image["uri"]).exists()
    quick = Store(finished.directory)
    quick.info = {**finished.info, "settings": {"quick": True}}
    with pytest.raises(SystemExit, match="quick run"):
        write_rst([quick], tmp_path)


def test_encoding_labels_keeps_the_rest_of_a_part():
    problem = problem_of(first_label=1)
    first = replace(problem.parts[0], shares=np.ones((300, 3)) / 3)
    prepared = prepare(replace(problem, parts=[first, *problem.parts[1:]]))
    assert prepared.parts[0].shares is first.shares
    assert prepared.parts[1].severity == 2
    assert prepared.parts[2].y is None


def test_kinds_of_inference_are_summarised_over_seeds():
    lines = [
        ("images", seed, method, metric, value)
        for seed in (0, 1)
        for method, difference in (("moments", 0.001 * (1 - 3 * seed)), ("256 paths", 0.0))
        for metric, value in (
            ("noise", float(seed)),
            ("nll", 0.4 + difference),
            ("difference", difference),
            ("same class", 98 + seed),
        )
    ]
    for metric, value in (("relative seconds", 1.2), ("less all", -0.002), ("over rows", 0.1)):
        lines += [("images", seed, "moments", metric, value + seed / 10) for seed in (0, 1)]
    results = pd.DataFrame(lines, columns=["problem", "seed", "method", "metric", "value"])
    moments, paths = inference.summary(results).to_dict("records")
    assert moments["seeds with noise"] == 1
    assert moments["largest absolute difference"] == "0.0020"
    assert moments["NLL minus 256-path NLL"].startswith("-0.0005 ± ")
    assert moments["NLL minus all-paths NLL (full test set)"].startswith("0.0480 ± ")
    assert moments["± over samples"] == "0.1500"
    assert moments["same class, percent"].startswith("98.5 ± ")
    assert moments["seconds relative to mean"].startswith("1.25 ± ")
    assert paths["seconds relative to mean"] == paths["± over samples"] == ""


class _TwoKindsOfPaths:
    """Paths in antithetic pairs: a random half, given the seed, predict 0.9, the others 0.5."""

    def sample_proba(self, X, n_samples=None, random_state=None):
        sure = np.random.default_rng(random_state).random(n_samples // 2) < 0.5
        p = np.where(np.concatenate([sure, sure]), 0.9, 0.5)[:, None].repeat(len(X), 1)
        return np.stack([1 - p, p], 2)


def test_fresh_paths_are_drawn_for_every_batch(monkeypatch):
    monkeypatch.setattr(inference, "FRESH_BATCH", 1)
    X, y = np.zeros((20_000, 1)), np.ones(20_000, dtype=int)
    found = inference.fresh_paths_nll(_TwoKindsOfPaths(), X, y, 0).mean()
    limit = -np.log(0.7)
    eight = np.mean([-np.log(np.mean(p)) for p in product((0.9, 0.5), repeat=4)])
    assert found == pytest.approx(limit, abs=0.4 * (eight - limit))
