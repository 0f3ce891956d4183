"""The loop that all benchmarks share: problems, seeds and methods in, tidy results out.

For each problem and seed, one wrapped classifier is frozen. All methods get the same training and
calibration rows and are judged on the same parts, as they are and with a temperature on top that
is fitted on the calibration rows. What the folder has already is not computed again.
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
from costs import Meter, costs
from methods import CHEAP
from scipy.special import log_softmax
from scores import (
    check_logits,
    divergence_from_raters,
    familiarity_scores,
    fit_temperature,
    log_probabilities,
    measure,
    row_nll,
    separation,
)
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import LabelEncoder
from store import Store
from tqdm import tqdm

OUTPUT = Path(__file__).parent / "output"


@dataclass(frozen=True)
class Part:
    """Rows to be judged on.

    Parameters
    ----------
    name : str
    make : callable
        Returns the inputs; called when they are needed, so that one part is in memory at a time.
    y : ndarray or None
        Labels; None for rows outside the distribution, which have none.
    severity : int
        1 to 5 for corrupted rows, else 0.
    shares : ndarray of shape (n, n_classes) or None
        Shares of the labels among the people who rated each row.
    """

    name: str
    make: Callable
    y: np.ndarray | None
    severity: int = 0
    shares: np.ndarray | None = None

    @property
    def key(self):
        """Name of the part among the values of single rows."""
        return f"{self.name} {self.severity}"


@dataclass(frozen=True)
class Problem:
    """A classifier to wrap and the rows to judge it on.

    Parameters
    ----------
    estimator : estimator
        Fitted on the training rows, unless it comes trained, and then frozen.
    train, calibration : tuple of X and y
    parts : list of Part
        The first is the ordinary test part.
    """

    estimator: object
    train: tuple
    calibration: tuple
    parts: list = field(default_factory=list)


def prepare(problem):
    """Return the problem with labels 0 to K - 1 and a frozen classifier.

    The temperature scaling of scikit-learn 1.9 encodes strings only: with labels 1 to K it
    returns uniform probabilities, without a word.
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
    """Return where a fine-tuned model lies: in ``models/`` beside the data."""
    data = os.environ.get("SKLEARN_DIFFUQ_DATA")
    if not data:
        raise SystemExit(
            "Set SKLEARN_DIFFUQ_DATA to the folder of the data; models/ must lie beside it."
        )
    return Path(data).parent / "models" / name


def judge(classifier, problem):
    """Return the records and the values of single rows of a fitted classifier on all parts."""
    X_cal, y_cal = problem.calibration
    check_logits(classifier, X_cal[:16])
    temperature = fit_temperature(log_probabilities(classifier, X_cal), y_cal)
    first = problem.parts[0]
    rows = {"y": first.y}
    records = [record("fit", "temperature", temperature)]
    has_outliers = any(part.y is None for part in problem.parts)
    inside = None
    for part in tqdm(problem.parts, desc="parts", leave=False):
        X = part.make()
        raw = log_probabilities(classifier, X)
        if has_outliers and (part is first or part.y is None):
            scores = familiarity_scores(classifier, X, raw)
            inside = inside or scores
            rows |= {f"{score}/{part.name}": v.astype(np.float32) for score, v in scores.items()}
        if part.y is None:
            found = separation(inside, scores)
            records += [record(part.name, metric, v) for metric, v in found.items()]
            continue
        scaled = {"raw": raw, "temperature": log_softmax(raw / temperature, axis=1)}
        for scaling, log_proba in scaled.items():
            records += labelled_scores(part, log_proba, scaling)
            rows[f"nll/{part.key}/{scaling}"] = row_nll(part.y, log_proba).astype(np.float32)
            if part is first:
                rows[f"log_proba/{scaling}"] = log_proba.astype(np.float32)
    return records, rows


def labelled_scores(part, log_proba, scaling):
    """Return the records of one part with labels."""
    found = measure(part.y, log_proba)
    if part.shares is not None:
        found["raters kl"] = divergence_from_raters(part.shares, log_proba)
    return [
        record(part.name, metric, value, part.severity, scaling) for metric, value in found.items()
    ]


def record(part, metric, value, severity=0, scaling="raw"):
    """Return one line of the results, without its key."""
    return {
        "part": part,
        "severity": severity,
        "scaling": scaling,
        "metric": metric,
        "value": float(value),
    }


class Fits:
    """The last fit on one problem, for a neighbour that differs in its prediction alone."""

    def __init__(self):
        self._fit = self._fitted = None

    def fitted(self, method, problem, seed):
        """Return the classifier that `method` fits, and the meter of its fit."""
        if self._fit is not method.fit:
            self._fit = None  # in case this one fails
            with Meter() as meter:
                classifier = method.fit(problem.estimator, problem.train, problem.calibration, seed)
            self._fit, self._fitted = method.fit, (classifier, meter)
        classifier, meter = self._fitted
        return copy.copy(classifier).set_params(**method.then) if method.then else classifier, meter


def run(store, problems, methods, seeds):
    """Measure what the store does not have yet; return (problem, seed, method) -> why it failed.

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
                except Exception as error:  # one method must not end hours of the others
                    reason = _explain(key, error)
                    if reason not in failures.values():
                        tqdm.write(reason)
                    failures[key] = reason
                bar.update()
    return failures


def _result(method, fits, problem, seed):
    classifier, meter = fits.fitted(method, problem, seed)
    records, rows = judge(classifier, problem)
    cost = costs(classifier, problem.estimator, problem.calibration[0], meter)
    return records + [record("cost", metric, value) for metric, value in cost.items()], rows


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
        All names; those in `cheap` are run by ``--quick``.
    n_seeds : int
        Number of seeds without ``--quick``.
    cheap : sequence of str
    more : callable, default=None
        Adds arguments to the parser.
    """
    parser = ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few rows, one seed, cheap methods")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument(
        "--methods", nargs="+", choices=methods, metavar="METHOD", help=str(methods)
    )
    parser.add_argument("--output", type=Path, help="folder; default: output/ beside the script")
    if more:
        more(parser)
    options = parser.parse_args()
    options.seeds = options.seeds or ([0] if options.quick else list(range(n_seeds)))
    chosen = [m for m in methods if m in cheap] if options.quick else methods
    options.methods = options.methods or list(chosen)
    return options


def benchmark(name, options, settings, problems, methods):
    """Run what is missing, write the report, and return the exit status."""
    from report import write_report

    store = Store(options.output or OUTPUT / f"{name}{'-quick' if options.quick else ''}")
    store.start(name, {"quick": options.quick, **settings})
    methods = {m: methods[m] for m in methods if m in options.methods}
    failures = run(store, problems, methods, options.seeds)
    for path in write_report(store, failures):
        print(f"written: {path}")
    return int(any("failed" in reason for reason in failures.values()))
