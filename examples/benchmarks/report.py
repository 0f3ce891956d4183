"""Report benchmark results as Markdown and HTML, or as tables for the documentation.

    python examples/benchmarks/report.py examples/benchmarks/output/vision
    python examples/benchmarks/report.py examples/benchmarks/output/* --rst doc/benchmarks

Each folder is the output of one benchmark. Its section is named after the folder if `TITLES` has
such an entry, else after the benchmark. With --rst, tables and figures are written to the given
folder, from which ``doc/benchmarks.rst`` includes them; quick runs are rejected.
"""

import argparse
import shutil
from pathlib import Path

import pictures
import summaries
from rendering import Section, html, markdown, rst
from store import Store
from summaries import REFERENCE, SCALINGS, select

TITLES = {
    "vision": "Images: Fashion-MNIST",
    "vision-passes": "Images: baselines that predict in several passes",
    "text": "Texts: movie reviews",
    "tables": "Tables: trained for a fixed number of epochs",
    "tables-early-stopping": "Tables: trained with early stopping",
    "ablation": "Ablation on Fashion-MNIST",
    "ablation-tables": "Ablation on four tables",
    "inference": "Moments and sampled paths",
    "speed": "Time and memory",
    "speed-cuda": "Time and memory on a GPU",
    "speed-quick": "Time and memory, a quick run",
    "border": "Upper bounds for recalibration under domain shift",
}
NO_RESULTS = "There are no results for this version of the package."
UNITS = (
    "Accuracy, ECE and gap (confidence minus accuracy) are in percent, NLL is in nats, and AURC "
    "and AUGRC are multiplied by 1000. Lower is better except for accuracy and error AUROC, and "
    "for the gap, which is best near 0. NLL and Brier score are proper scoring rules. ± is the "
    "half width of a 95% interval over seeds."
)
DIFFERENCES = (
    f"Paired differences to {REFERENCE[0]} + temperature on the same samples and seeds. Negative "
    "differences in NLL favour the method. Intervals over seeds reflect training, those over "
    "samples the test set. Accuracy is in percentage points."
)


def write_report(store, failures=None):
    """Write ``report.md``, ``report.html`` and figures into the store's folder.

    Parameters
    ----------
    store : Store
    failures : dict, default=None
        (problem, seed, method) -> reason why there is no result.

    Returns
    -------
    paths : list of Path
        Paths of the two reports.
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
        body = sections_over_problems(store)
    else:
        body = [*test_sections(store, problems[0]), *shift_sections(store, problems[0])]
    cost = Section(
        "Cost",
        "Relative costs refer to the wrapped model, timed alternately on the same samples. Methods "
        "that share a fit share its seconds. Means over problems and seeds.",
        summaries.by_metric(select(results, part="cost"), spread=False),
    )
    full = Section("All results", "", summaries.everything(results), long=True)
    return title, [run_section(store), *body, cost, full]


def name_of(store):
    """Return the name of the section to which the results of a store belong."""
    name = store.directory.name
    return name if name in TITLES else store.info["benchmark"]


def show_tables(store, sections, directory=None):
    """Print the runs and the tables; with a directory, also write them for the documentation."""
    name = name_of(store)
    sections = [run_section(store), *sections]
    print(markdown(TITLES[name], sections))
    if directory:
        (directory / f"{name}.inc").write_text(rst(TITLES[name], sections, ""), encoding="utf-8")


def run_section(store):
    """Return a section that lists every command with its date, and the environment and settings."""
    runs = store.info["runs"]
    environments = list(dict.fromkeys(_environment(run) for run in runs))
    text = [f"Seeds: {store.results['seed'].nunique()}. Settings: {_settings(store)}."]
    if len(environments) == 1:
        text.append(f"Environment: {environments[0]}.")
    else:
        text += [f"Environment {i}: {found}." for i, found in enumerate(environments, 1)]
    if store.info["settings"].get("quick"):
        text.append("This is a quick run on few samples and one seed: the ranking is rough.")
    missing = summaries.incomplete(store.results)
    if missing:
        text.append(f"Incomplete: {', '.join(missing)}.")
    commands = [f"{run['date']}: `{run['command']}`" for run in runs]
    if len(environments) > 1:
        numbers = [environments.index(_environment(run)) + 1 for run in runs]
        commands = [f"{c} (environment {n})" for c, n in zip(commands, numbers, strict=True)]
    return Section("Run", " ".join(text), bullets=tuple(commands))


def _environment(run):
    """Return the machine and the versions with which a command was run."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return f"{run['machine']}; {versions}"


def _settings(store):
    return ", ".join(f"{name} {value}" for name, value in store.info["settings"].items())


def sections_over_problems(store):
    """Return sections with mean ranks over problems and the NLL of each problem."""
    results = store.results
    ranks, p_values = summaries.mean_ranks(results)
    known = [f"{SCALINGS[s]} p = {p:.2g}" for s, p in p_values.items() if p is not None]
    text = f"Ranked by NLL, averaged over seeds, on {results['problem'].nunique()} problems. "
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


def test_sections(store, problem):
    """Return sections with the metrics on uncorrupted parts and the figures of the test set."""
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
    first_seed = "Before temperature scaling, on the test set, for the first seed."
    drawn = pictures.reliability(store, problem, store.directory / "reliability.png")
    sections.append(Section("Reliability", first_seed, picture=drawn))
    drawn = pictures.risk_coverage(store, problem, store.directory / "risk_coverage.png")
    sections.append(Section("Risk and coverage", first_seed, picture=drawn))
    return sections


def shift_sections(store, problem):
    """Return sections with metrics under corruption, ranks over parts, and outlier detection."""
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
        text += "Only seeds with results of all methods are used."
        sections.append(Section("Mean ranks", text, summaries.ranks_over_parts(results)))
    found = summaries.outliers(results)
    if not found.empty:
        picture = pictures.outlier_scores(store, problem, store.directory / "outliers.png")
        text = "In percent. FPR95 is the share of test samples rejected when 95% of outliers are "
        text += "detected."
        sections.append(Section("Out of distribution", text, found, picture))
    return sections


def write_rst(stores, directory):
    """Write one file per benchmark, and one that includes all of them, for the documentation."""
    directory.mkdir(parents=True, exist_ok=True)
    for store in stores:
        if store.info["settings"].get("quick"):
            raise SystemExit(f"{store.directory} is a quick run, which is too small to publish.")
        title, sections = sections_of(store)
        name = name_of(store)
        (directory / name).mkdir(exist_ok=True)
        for section in sections:
            if section.picture is not None:
                shutil.copy(section.picture, directory / name)
        page = rst(title, sections, f"{directory.name}/{name}")
        (directory / f"{name}.inc").write_text(page, encoding="utf-8")
    found = [name for name in TITLES if (directory / f"{name}.inc").exists()]
    # Sphinx resolves included paths relative to the page, even in an included file.
    text = "\n".join(f".. include:: {directory.name}/{name}.inc" for name in found) or NO_RESULTS
    (directory / "all.inc").write_text(text + "\n", encoding="utf-8")


def main():
    """Write the reports, or the tables of the documentation."""
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
