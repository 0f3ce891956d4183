"""Figures of the report, one PNG file each, drawn from per-sample values."""

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt
from summaries import REFERENCE, SCALINGS, select

from sklearn_diffuq.metrics import OODScoreDisplay, ReliabilityDisplay, RiskCoverageDisplay

# Line styles make three times as many lines distinguishable as there are colours.
plt.rc("axes", prop_cycle=plt.cycler(linestyle=["-", "--", ":"]) * plt.rcParams["axes.prop_cycle"])
N_COLUMNS = 4
SHOWN_SCORES = (("backbone", "max probability"), ("diffusion", "score_samples"))


def _save(figure, path):
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)
    return path


def _legend_beside(ax):
    ax.legend(fontsize=8, bbox_to_anchor=(1.02, 1), loc="upper left")


def _first_seed(store, problem):
    """Yield each method of a problem with its per-sample values for its first seed."""
    for method, part in select(store.results, problem=problem).groupby("method", sort=False):
        samples = store.samples((problem, part["seed"].iloc[0], method))
        if samples:
            yield method, samples


def _proba(samples, scaling):
    proba = np.exp(samples[f"log_proba/{scaling}"].astype(float))
    return proba / proba.sum(axis=1, keepdims=True)


def reliability(store, problem, path):
    """Draw the reliability diagram of every method on the test set."""
    methods = list(_first_seed(store, problem))
    n_lines = -(-len(methods) // N_COLUMNS)
    figure, axes = plt.subplots(
        n_lines, N_COLUMNS, figsize=(4 * N_COLUMNS, 4.4 * n_lines), squeeze=False
    )
    for ax, (method, samples) in zip(axes.flat, methods, strict=False):
        proba = _proba(samples, "raw")
        labels = np.arange(proba.shape[1])
        ReliabilityDisplay.from_predictions(samples["y"], proba, labels=labels, name=method, ax=ax)
    for ax in axes.flat[len(methods) :]:
        ax.axis("off")
    figure.tight_layout()
    return _save(figure, path)


def risk_coverage(store, problem, path):
    """Draw the risk-coverage curves of all methods on the test set."""
    figure, ax = plt.subplots(figsize=(7, 5))
    for method, samples in _first_seed(store, problem):
        proba = _proba(samples, "raw")
        labels = np.arange(proba.shape[1])
        RiskCoverageDisplay.from_predictions(samples["y"], proba, labels=labels, name=method, ax=ax)
    _legend_beside(ax)
    return _save(figure, path)


def nll_by_severity(results, problem, path):
    """Draw the NLL, averaged over corruptions, against severity."""
    shifted = select(results, problem=problem, metric="nll").query("severity > 0")
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    for ax, (scaling, title) in zip(axes, SCALINGS.items(), strict=True):
        for method, part in select(shifted, scaling=scaling).groupby("method", sort=False):
            mean = part.groupby("severity")["value"].mean()
            style = {"color": "k", "ls": "-."} if method == REFERENCE[0] else {}
            width = 3 if method == "diffusion" else 1.2  # highlights the method of this package
            ax.plot(mean.index, mean, lw=width, marker="o", markersize=3, label=method, **style)
        ax.set(xlabel="Severity", title=title, xticks=sorted(shifted["severity"].unique()))
        ax.set_yscale("log")
    axes[0].set_ylabel("NLL, mean over corruptions")
    _legend_beside(axes[1])
    return _save(figure, path)


def outlier_scores(store, problem, path):
    """Draw histograms of two scores in and out of distribution, or return None."""
    samples = dict(_first_seed(store, problem))
    shown = [(m, s) for m, s in SHOWN_SCORES if f"{s}/test" in samples.get(m, {})]
    if not shown:
        return None
    kinds = [
        key.removeprefix("entropy/")
        for key in samples[shown[0][0]]
        if key.startswith("entropy/") and key != "entropy/test"
    ]
    figure, axes = plt.subplots(
        len(shown), len(kinds), figsize=(4 * len(kinds), 3.4 * len(shown)), squeeze=False
    )
    for line, (method, score) in zip(axes, shown, strict=True):
        for ax, kind in zip(line, kinds, strict=True):
            values = samples[method]
            OODScoreDisplay.from_predictions(
                values[f"{score}/test"], values[f"{score}/{kind}"], ax=ax
            )
            ax.set(xlabel=score, title=f"{kind}: {method}")
    figure.tight_layout()
    return _save(figure, path)


def mean_rank_dots(ranks, path):
    """Draw the mean ranks of the methods before and after temperature scaling."""
    figure, ax = plt.subplots(figsize=(7, 0.35 * len(ranks) + 1))
    for column, marker in zip(ranks.columns, ("o", "x"), strict=True):
        ax.plot(ranks[column].astype(float), ranks.index, marker, label=column)
    ax.invert_yaxis()
    ax.set_xlabel("Mean rank by NLL (1 is best)")
    ax.legend(fontsize=8)
    return _save(figure, path)
