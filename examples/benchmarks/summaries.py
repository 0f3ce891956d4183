"""Tables of tidy results: means and intervals over seeds, differences, ranks."""

import numpy as np
import pandas as pd
from scipy import stats

REFERENCE = ("backbone", "temperature")  # the baseline that a calibration method has to beat
SCALINGS = {"raw": "before temperature scaling", "temperature": "after temperature scaling"}
DECIMALS = {
    "accuracy": 2, "nll": 4, "brier": 4, "ece": 2, "adaptive ece": 2, "gap": 2, "aurc": 2,
    "augrc": 2, "error auroc": 3, "raters kl": 4, "parameters": 0, "relative parameters": 2,
    "passes": 0, "seconds per 1000": 2, "relative seconds": 2, "fit seconds": 1, "fit peak MiB": 0,
    "temperature": 3,
}  # fmt: skip


def half_width(values):
    """Return the half width of a 95% t interval for the mean of `values`; nan for one value."""
    n = len(values)
    return stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else np.nan


def interval(values, decimals=4, spread=True):
    """Format the mean of `values`, with the half width of its 95% interval if there are several."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if not len(values):
        return ""
    mean, half = np.mean(values), half_width(values) if spread else np.nan
    mean = round(mean, decimals) + 0.0  # no minus zero
    return f"{mean:.{decimals}f}" + ("" if np.isnan(half) else f" ± {half:.{decimals}f}")


def in_order(table, results):
    """Sort the rows of a table, one per method, in the order of the results."""
    methods = [m for m in results["method"].unique() if m in table.index]
    return table.reindex(pd.Index(methods, name="method"))


def select(results, **equal):
    """Return the results whose columns have the given values."""
    for column, value in equal.items():
        results = results[results[column] == value]
    return results


def by_metric(results, spread=True):
    """Return a table of means, method x metric, with or without intervals over seeds."""
    columns = list(results["metric"].unique())
    table = results.pivot_table(
        index="method",
        columns="metric",
        values="value",
        sort=False,
        aggfunc=list,
    )
    for metric in table.columns:
        decimals = DECIMALS.get(metric, 3)
        lists = [v if isinstance(v, list) else [] for v in table[metric]]
        table[metric] = [interval(v, decimals, spread) for v in lists]
    return in_order(table[[c for c in columns if c in table]], results)


def by_column(results, column, decimals=4):
    """Return a table of means and intervals over seeds, method x values of `column`.

    If a method has several parts for a seed, they are averaged first.
    """
    seeds = results.groupby(["method", "seed", column], sort=False)["value"].mean()
    table = seeds.groupby(["method", column], sort=False).agg(lambda v: interval(v, decimals))
    return in_order(table.unstack().fillna(""), results)


def over_parts(results):
    """Return the results of each method and seed, averaged over parts and severities."""
    keys = ["method", "seed", "metric"]
    return results.groupby(keys, sort=False)["value"].mean().reset_index()


def paired(results, metric, problem, part, severity=0):
    """Return the difference to the reference for each method, scaling and seed."""
    chosen = select(results, metric=metric, problem=problem, part=part, severity=severity)
    reference = select(chosen, method=REFERENCE[0], scaling=REFERENCE[1])
    reference = reference.set_index("seed")["value"]
    return chosen.assign(value=chosen["value"] - chosen["seed"].map(reference))


def sample_interval(store, problem, part, severity, method, scaling):
    """Return the half width over samples of the NLL difference, averaged over seeds."""
    halves = []
    for seed in select(store.results, problem=problem, method=method)["seed"].unique():
        own = store.samples((problem, seed, method)).get(f"nll/{part} {severity}/{scaling}")
        other = store.samples((problem, seed, REFERENCE[0])).get(
            f"nll/{part} {severity}/{REFERENCE[1]}"
        )
        if own is not None and other is not None:
            difference = own.astype(float) - other
            halves.append(1.96 * np.std(difference, ddof=1) / np.sqrt(len(difference)))
    return f"{np.mean(halves):.4f}" if halves else ""


def differences(store, problem, part, severity=0):
    """Return a table of paired differences to the reference, in NLL and accuracy."""
    results = store.results
    columns = {}
    for scaling, name in (("raw", "NLL"), ("temperature", "NLL, temperature")):
        nll = select(paired(results, "nll", problem, part, severity), scaling=scaling)
        if nll["value"].isna().all():
            return pd.DataFrame()
        columns[name] = nll.groupby("method", sort=False)["value"].agg(interval)
        columns[f"{name}: ± over samples"] = pd.Series(
            {m: sample_interval(store, problem, part, severity, m, scaling) for m in nll["method"]}
        )
    accuracy = select(paired(results, "accuracy", problem, part, severity), scaling="raw")
    columns["accuracy"] = accuracy.groupby("method", sort=False)["value"].agg(
        lambda v: interval(v, 2)
    )
    return in_order(pd.DataFrame(columns).fillna(""), results)


def mean_ranks(results):
    """Return the mean rank of each method by NLL over the problems, and a p-value for each scaling.

    1 is best. Methods with results on at most half of the problems are left out, and then problems
    without results of a remaining method. The p-value is that of Friedman's test that all methods
    rank alike.
    """
    chosen = select(results, metric="nll", part="test")
    columns, p_values = {}, {}
    for scaling in SCALINGS:
        means = select(chosen, scaling=scaling).pivot_table(
            index="problem", columns="method", values="value", sort=False
        )
        means = means.dropna(axis=1, thresh=int(np.ceil((len(means) + 1) / 2))).dropna()
        means = means.round(4)  # smaller differences are ties
        columns[f"mean rank, {scaling}"] = means.rank(axis=1).mean()
        enough = means.shape[0] > 1 and means.shape[1] > 2
        p_values[scaling] = stats.friedmanchisquare(*means.T.to_numpy()).pvalue if enough else None
    table = in_order(pd.DataFrame(columns), results)
    return table.map(lambda rank: f"{rank:.2f}"), p_values


def ranks_over_parts(results):
    """Return the mean rank of each method over all parts with labels, after temperature scaling.

    1 is best. Each severity of a corruption counts as a part. Only seeds with results of all
    methods are used, because each seed has its own corruptions.
    """
    columns = {}
    n_methods = results["method"].nunique()
    shared = results.groupby("seed")["method"].transform("nunique") == n_methods
    for metric in ("nll", "brier"):
        means = select(results[shared], metric=metric, scaling="temperature").pivot_table(
            index=["part", "severity"], columns="method", values="value", sort=False
        )
        ranks = means.round(4).rank(axis=1)  # smaller differences are ties
        columns[f"mean rank, {metric}"] = ranks.mean().map("{:.2f}".format)
    seconds = select(results, metric="relative seconds").groupby("method")["value"].mean()
    columns["relative seconds"] = seconds.map("{:.2f}".format)
    return in_order(pd.DataFrame(columns), results)


def incomplete(results):
    """Return "method (3 of 10 runs)" for each method without results for some problem or seed."""
    runs = results[["problem", "seed", "method"]].drop_duplicates()
    n_all = len(runs[["problem", "seed"]].drop_duplicates())
    counts = runs.groupby("method", sort=False).size()
    return [f"{method} ({n} of {n_all} runs)" for method, n in counts.items() if n < n_all]


def outliers(results):
    """Return AUROC and FPR95 in percent for each method, kind of outlier and score, and means.

    Kinds whose name starts with "unseen" are averaged separately.
    """
    columns = ["method", "part", "score", "auroc", "fpr95"]
    chosen = results[results["metric"].str.match("auroc, |fpr95, ")]
    if chosen.empty:
        return pd.DataFrame(columns=columns)
    split = chosen["metric"].str.split(", ", n=1, expand=True)
    chosen = chosen.assign(kind=split[0], score=split[1], value=100 * chosen["value"])
    over = chosen["part"].str.startswith("unseen").map({True: "unseen mean", False: "mean"})
    keys = ["method", "seed", "score", "kind"]
    mean = chosen.assign(part=over).groupby([*keys, "part"], sort=False)["value"].mean()
    chosen = pd.concat([chosen, mean.reset_index()])
    grouped = chosen.groupby(["method", "part", "score", "kind"], sort=False)["value"]
    table = grouped.agg(lambda v: interval(v, 1)).unstack().reset_index()
    return table[columns]


def everything(results):
    """Return a table of all results: one row per problem, part, scaling, method and metric."""
    results = results.assign(
        severity=results["severity"].astype(int),
        digits=results["metric"].map(DECIMALS).fillna(3).astype(int),
    )
    keys = ["problem", "part", "severity", "scaling", "method", "metric"]
    grouped = results.groupby(keys, sort=False)
    table = grouped["value"].agg(list).to_frame().join(grouped["digits"].first())
    table["value"] = [interval(v, d) for v, d in zip(table["value"], table["digits"], strict=True)]
    table["seeds"] = grouped["seed"].nunique()
    return table.drop(columns="digits").reset_index()
