"""Write the report of benchmark results: Markdown and HTML, or the tables of the documentation.

    python examples/benchmarks/report.py examples/benchmarks/output/vision
    python examples/benchmarks/report.py examples/benchmarks/output/* --rst doc/benchmarks

Each folder is the output of one benchmark; one that has a title of its own in `TITLES` becomes a
section of its own, else it is the section of its benchmark. With --rst, tables and pictures are
written to the given folder and the page ``doc/benchmarks.rst`` includes them; a quick run is
refused there.
"""

import argparse
import shutil
from itertools import groupby
from pathlib import Path

import pictures
import summaries
from rendering import Section, html, markdown, rst
from store import Store
from summaries import REFERENCE, SCALINGS, select

TITLES = {
    "vision": "Images: Fashion-MNIST",
    "vision-passes": "Images: rivals that predict in several passes",
    "text": "Texts: movie reviews",
    "tables": "Tables: trained for a fixed number of epochs",
    "tables-early-stopping": "Tables: trained with early stopping",
    "ablation": "Controls on Fashion-MNIST",
    "ablation-tables": "Controls on four tables",
    "inference": "Moments and drawn paths",
    "border": "What a recalibration of texts could reach",
}
NO_RESULTS = "No results are recorded for this version of the package."
UNITS = (
    "Accuracy, ECE and gap (confidence minus accuracy) in percent, NLL in nats, AURC and AUGRC "
    "times 1000. Lower is better but for accuracy and error AUROC; NLL and Brier score are proper. "
    "± is the half width of a 95% interval over seeds."
)
DIFFERENCES = (
    f"Paired with {REFERENCE[0]} + temperature on the same rows and seeds. Negative NLL is better. "
    "The interval over seeds is about training; that over rows is about the test rows. Accuracy in "
    "points."
)


def write_report(store, failures=None):
    """Write ``report.md``, ``report.html`` and pictures into the store's folder.

    Parameters
    ----------
    store : Store
    failures : dict, default=None
        (problem, seed, method) -> why there is no result.

    Returns
    -------
    paths : list of Path
        Of the two reports.
    """
    title, sections = sections_of(store)
    reasons = sorted(set((failures or {}).values()))
    if reasons:
        sections.insert(1, Section("Without results", "; ".join(reasons) + "."))
    written = []
    for name, render in (("report.md", markdown), ("report.html", html)):
        path = store.directory / name
        path.write_text(render(title, sections), encoding="utf-8")
        written.append(path)
    return written


def sections_of(store):
    """Return the title and the sections of a report."""
    results = store.results
    title = TITLES.get(name_of(store), name_of(store))
    if results.empty:
        return title, [run_section(store), Section("Results", NO_RESULTS)]
    problems = list(results["problem"].unique())
    if len(problems) > 1:
        body = many_problems(store)
    else:
        body = [*scores(store, problems[0]), *shifts(store, problems[0])]
    cost = Section(
        "Cost",
        "Relative: to the wrapped model, timed in turn on the same rows. Methods that share a fit "
        "share its seconds. Means over problems and seeds.",
        summaries.by_metric(select(results, part="cost"), spread=False),
    )
    full = Section("All results", "", summaries.everything(results), long=True)
    return title, [run_section(store), *body, cost, full]


def name_of(store):
    """Return the name of the section that a store's results belong to."""
    name = store.directory.name
    return name if name in TITLES else store.info["benchmark"]


def show_table(store, section, directory=None):
    """Print what was run and one table; with a directory, write them for the documentation too."""
    name = name_of(store)
    sections = [run_section(store), section]
    print(markdown(TITLES[name], sections))
    if directory:
        (directory / f"{name}.inc").write_text(rst(TITLES[name], sections, ""), encoding="utf-8")


def run_section(store):
    """Return what was run, when, and with what."""
    lines = []
    for (machine, versions), runs in groupby(store.info["runs"], key=_where):
        commands = ", ".join(f"{run['date']}: `{run['command']}`" for run in runs)
        lines.append(f"{commands} ({machine}; {versions}).")
    if store.info["settings"].get("quick"):
        lines.append("A quick run on few rows and one seed: the order of the methods is rough.")
    lines.append(f"Seeds: {store.results['seed'].nunique()}. Settings: {_settings(store)}.")
    missing = summaries.incomplete(store.results)
    if missing:
        lines.append(f"Incomplete: {', '.join(missing)}.")
    return Section("Run", " ".join(lines))


def _where(run):
    """Return on what machine and with which versions a command was run."""
    return run["machine"], ", ".join(f"{name} {v}" for name, v in run["versions"].items())


def _settings(store):
    return ", ".join(f"{name} {value}" for name, value in store.info["settings"].items())


def many_problems(store):
    """Return mean ranks, and the NLL of each problem."""
    results = store.results
    ranks, p_values = summaries.mean_ranks(results)
    known = [f"{SCALINGS[s]} p = {p:.2g}" for s, p in p_values.items() if p is not None]
    text = f"By the NLL, averaged over seeds, of {results['problem'].nunique()} problems. "
    text += "Friedman test: " + ", ".join(known) + "." if known else ""
    dots = pictures.mean_rank_dots(ranks, store.directory / "ranks.png")
    sections = [Section("Mean ranks", text, ranks, dots)]
    for scaling, name in SCALINGS.items():
        nll = select(results, part="test", metric="nll", scaling=scaling)
        table = summaries.by_column(nll, "problem").T
        sections.append(Section(f"NLL, {name}", UNITS, table))
    for problem in results["problem"].unique():
        table = summaries.differences(store, problem, "test")
        if not table.empty:
            sections.append(Section(f"{problem}: differences", DIFFERENCES, table, long=True))
    return sections


def scores(store, problem):
    """Return the scores on the parts that are not corrupted, and the pictures of the test part."""
    results = select(store.results, problem=problem)
    plain = results.query("severity == 0 and metric == 'nll'")
    sections = []
    for part in plain["part"].unique():
        for scaling, name in SCALINGS.items():
            table = summaries.by_metric(select(results, part=part, severity=0, scaling=scaling))
            sections.append(Section(f"{part.capitalize()}, {name}", UNITS, table))
        table = summaries.differences(store, problem, part)
        if not table.empty:
            sections.append(Section(f"{part.capitalize()}, differences", DIFFERENCES, table))
    first_seed = "As the methods give them, first seed, test part."
    drawn = pictures.reliability(store, problem, store.directory / "reliability.png")
    sections.append(Section("Reliability", first_seed, picture=drawn))
    drawn = pictures.risk_coverage(store, problem, store.directory / "risk_coverage.png")
    sections.append(Section("Risk and coverage", first_seed, picture=drawn))
    return sections


def shifts(store, problem):
    """Return the scores under corruption, ranks over all parts, and the separation of outliers."""
    results = select(store.results, problem=problem)
    corrupted = results.query("severity > 0")
    shifted = select(corrupted, metric="nll")
    sections = []
    if not shifted.empty:
        for scaling, name in SCALINGS.items():
            table = summaries.by_metric(summaries.over_parts(select(corrupted, scaling=scaling)))
            text = f"Mean over corruptions and severities. {UNITS}"
            sections.append(Section(f"Corrupted, {name}", text, table))
        path = pictures.nll_by_severity(results, problem, store.directory / "severity.png")
        sections.append(Section("NLL by severity", "", picture=path))
        for scaling, name in SCALINGS.items():
            chosen = select(shifted, scaling=scaling)
            for column, what, over in (
                ("severity", "severity", "corruptions"),
                ("part", "corruption", "severities"),
            ):
                table = summaries.by_column(chosen, column)
                sections.append(Section(f"NLL by {what}, {name}", f"Mean over {over}.", table))
    if select(results, metric="nll")["part"].nunique() > 1:
        text = "After temperature scaling, over all parts with labels; each severity is a part. "
        text += "Over the seeds that all methods have."
        sections.append(Section("Mean ranks", text, summaries.ranks_over_parts(results)))
    found = summaries.outliers(results)
    if not found.empty:
        picture = pictures.outlier_scores(store, problem, store.directory / "outliers.png")
        text = "In percent. FPR95 is the share of test rows refused when 95% of outliers are found."
        sections.append(Section("Out of distribution", text, found, picture))
    return sections


def write_rst(stores, directory):
    """Write one file per benchmark, and one that includes them all, for the documentation."""
    directory.mkdir(parents=True, exist_ok=True)
    for store in stores:
        if store.info["settings"].get("quick"):
            raise SystemExit(f"{store.directory} is a quick run, whose figures mean nothing.")
        title, sections = sections_of(store)
        name = name_of(store)
        (directory / name).mkdir(exist_ok=True)
        for section in sections:
            if section.picture is not None:
                shutil.copy(section.picture, directory / name)
        page = rst(title, sections, f"{directory.name}/{name}")
        (directory / f"{name}.inc").write_text(page, encoding="utf-8")
    found = [name for name in TITLES if (directory / f"{name}.inc").exists()]
    # Sphinx takes the path of an include from the page, even inside an included file.
    text = "\n".join(f".. include:: {directory.name}/{name}.inc" for name in found) or NO_RESULTS
    (directory / "all.inc").write_text(text + "\n", encoding="utf-8")


def main():
    """Write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--rst", type=Path, help="folder for the tables of the documentation")
    options = parser.parse_args()
    stores = [Store(folder) for folder in options.folders]
    if options.rst:
        write_rst(stores, options.rst)
    else:
        for store in stores:
            print(*write_report(store), sep="\n")


if __name__ == "__main__":
    main()
