"""The loop shared by all benchmarks: problems, seeds and methods in, tidy results out.

For each problem and seed, one wrapped classifier is frozen. All methods get the same training and
calibration samples and are evaluated on the same parts of the data, before and after temperature
scaling fitted on the calibration samples. Results that the folder already has are not recomputed.
"""

import copy
import os
import traceback
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from costs import costs
from evaluation import (
    check_logits,
    detection,
    divergence_from_raters,
    log_probabilities,
    measure,
    ood_scores,
    sample_nll,
)
from methods import CHEAP
from scipy.special import log_softmax
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import LabelEncoder
from store import Store
from timing import Meter
from tqdm import tqdm

from sklearn_diffuq.metrics._temperature import fit_temperature

OUTPUT = Path(__file__).parent / "output"


@dataclass(frozen=True)
class Part:
    """Samples to evaluate on.

    Parameters
    ----------
    name : str
    make : callable
        Returns the inputs; called on demand, so that only one part is in memory at a time.
    y : ndarray or None
        Labels; None for out-of-distribution samples.
    severity : int
        1 to 5 for corrupted samples, else 0.
    shares : ndarray of shape (n, n_classes) or None
        Share of each label among the raters of each sample.
    """

    name: str
    make: Callable
    y: np.ndarray | None
    severity: int = 0
    shares: np.ndarray | None = None

    @property
    def key(self):
        """Name of the part among the per-sample values."""
        return f"{self.name} {self.severity}"


@dataclass(frozen=True)
class Problem:
    """A classifier to wrap, and the samples to fit and evaluate on.

    Parameters
    ----------
    estimator : estimator
        Fitted on the training samples, unless already trained, and then frozen.
    train, calibration : tuple of X and y
    parts : list of Part
        The first is the clean test set.
    """

    estimator: object
    train: tuple
    calibration: tuple
    parts: list = field(default_factory=list)


def prepare(problem):
    """Return the problem with labels encoded as 0 to K - 1 and a fitted, frozen classifier.

    Temperature scaling in scikit-learn 1.9 encodes only strings: with labels 1 to K it silently
    returns uniform probabilities.
    """
    (X_train, y_train), (X_cal, y_cal) = problem.train, problem.calibration
    encoder = LabelEncoder().fit(y_train)
    train = X_train, encoder.transform(y_train)
    calibration = X_cal, encoder.transform(y_cal)
    parts = [
        part if part.y is None else replace(part, y=encoder.transform(part.y))
        for part in problem.parts
    ]
    return Problem(FrozenEstimator(problem.estimator.fit(*train)), train, calibration, parts)


def model_path(name):
    """Return the path of a fine-tuned model, in ``models/`` next to the data."""
    data = os.environ.get("SKLEARN_DIFFUQ_DATA")
    if not data:
        raise SystemExit(
            "Set SKLEARN_DIFFUQ_DATA to the folder of the data; models/ must be next to it."
        )
    return Path(data).parent / "models" / name


def evaluate(classifier, problem):
    """Return the records and the per-sample values of a fitted classifier on all parts."""
    X_cal, y_cal = problem.calibration
    check_logits(classifier, X_cal[:16])
    temperature = fit_temperature(log_probabilities(classifier, X_cal), y_cal)
    first = problem.parts[0]
    samples = {"y": first.y}
    records = [as_record("fit", "temperature", temperature)]
    has_outliers = any(part.y is None for part in problem.parts)
    scores_in = None
    for part in tqdm(problem.parts, desc="parts", leave=False):
        X = part.make()
        raw = log_probabilities(classifier, X)
        if has_outliers and (part is first or part.y is None):
            scores = ood_scores(classifier, X, raw)
            scores_in = scores_in or scores
            samples |= {f"{name}/{part.name}": v.astype(np.float32) for name, v in scores.items()}
        if part.y is None:
            found = detection(scores_in, scores)
            records += [as_record(part.name, metric, v) for metric, v in found.items()]
            continue
        scaled = {"raw": raw, "temperature": log_softmax(raw / temperature, axis=1)}
        for scaling, log_proba in scaled.items():
            records += metric_records(part, log_proba, scaling)
            samples[f"nll/{part.key}/{scaling}"] = sample_nll(part.y, log_proba).astype(np.float32)
            if part is first:
                samples[f"log_proba/{scaling}"] = log_proba.astype(np.float32)
    return records, samples


def metric_records(part, log_proba, scaling):
    """Return the records of the metrics on one part with labels."""
    found = measure(part.y, log_proba)
    if part.shares is not None:
        found["raters kl"] = divergence_from_raters(part.shares, log_proba)
    return [
        as_record(part.name, metric, value, part.severity, scaling)
        for metric, value in found.items()
    ]


def as_record(part, metric, value, severity=0, scaling="raw"):
    """Return one line of ``results.csv`` as a dict, without its key."""
    return {
        "part": part,
        "severity": severity,
        "scaling": scaling,
        "metric": metric,
        "value": float(value),
    }


class Fits:
    """Cache of the last fit, for the next method if it differs only in its prediction."""

    def __init__(self):
        self._fit = self._fitted = None

    def fitted(self, method, problem, seed):
        """Return the classifier that `method` fits, and the meter of its fit."""
        if self._fit is not method.fit:
            self._fit = None  # in case this fit fails
            with Meter() as meter:
                classifier = method.fit(problem.estimator, problem.train, problem.calibration, seed)
            self._fit, self._fitted = method.fit, (classifier, meter)
        classifier, meter = self._fitted
        return copy.copy(classifier).set_params(**method.then) if method.then else classifier, meter


def run(store, problems, methods, seeds):
    """Compute the missing results; return (problem, seed, method) -> reason of failure.

    Parameters
    ----------
    store : Store
    problems : dict of str to callable
        Each takes a seed and returns a `Problem`.
    methods : dict of str to Method
    seeds : list of int
    """
    done = store.done()
    keys = [(p, s, m) for p in problems for s in seeds for m in methods]
    missing = [key for key in keys if key not in done]
    failures = {}
    with tqdm(total=len(keys), initial=len(keys) - len(missing), unit="method") as bar:
        for (name, seed), group in groupby(missing, key=lambda key: key[:2]):
            bar.set_description(f"{name}, seed {seed}")
            problem, fits = prepare(problems[name](seed)), Fits()
            for key in group:
                bar.set_postfix_str(key[2])
                try:
                    store.add(key, *_result(methods[key[2]], fits, problem, seed))
                except Exception as error:  # a failing method must not end hours of work on others
                    reason = _explain(key, error)
                    if reason not in failures.values():
                        tqdm.write(reason)
                    failures[key] = reason
                bar.update()
    return failures


def _result(method, fits, problem, seed):
    classifier, meter = fits.fitted(method, problem, seed)
    records, samples = evaluate(classifier, problem)
    cost = costs(classifier, problem.estimator, problem.calibration[0], meter)
    return records + [as_record("cost", metric, value) for metric, value in cost.items()], samples


def _explain(key, error):
    problem, seed, method = key
    if isinstance(error, ImportError):
        return f"{method} left out, a package is missing: {error}"
    tqdm.write("".join(traceback.format_exception(error)))
    return f"{method} failed on {problem}, seed {seed}: {type(error).__name__}: {error}"


def parse(description, methods, n_seeds=5, cheap=CHEAP, more=None):
    """Return the options of a command line.

    Parameters
    ----------
    description : str
    methods : list of str
        Names of all methods; ``--quick`` runs those in `cheap`.
    n_seeds : int
        Number of seeds without ``--quick``.
    cheap : sequence of str
    more : callable, default=None
        Adds arguments to the parser.
    """
    parser = ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few samples, one seed, cheap methods")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument(
        "--methods", nargs="+", choices=methods, metavar="METHOD", help=str(methods)
    )
    parser.add_argument("--output", type=Path, help="folder; default: output/ next to the script")
    if more:
        more(parser)
    options = parser.parse_args()
    options.seeds = options.seeds or ([0] if options.quick else list(range(n_seeds)))
    chosen = [m for m in methods if m in cheap] if options.quick else methods
    options.methods = options.methods or list(chosen)
    return options


def benchmark(name, options, settings, problems, methods):
    """Compute the missing results, write the report, and return the exit status."""
    from report import write_report

    store = Store(options.output or OUTPUT / f"{name}{'-quick' if options.quick else ''}")
    store.start(name, {"quick": options.quick, **settings})
    methods = {m: methods[m] for m in methods if m in options.methods}
    failures = run(store, problems, methods, options.seeds)
    for path in write_report(store, failures):
        print(f"written: {path}")
    return int(any("failed" in reason for reason in failures.values()))
