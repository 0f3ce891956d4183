"""The folder of one benchmark: its runs, one CSV file of results, and per-sample values.

``run.json`` lists the commands that produced the results, with dates and versions. ``results.csv``
has one record, or line, per measured value. ``rows/`` has one file of per-sample values for each
problem, seed and method, for figures and for paired differences between methods.
"""

import json
import os
import platform
import re
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

KEY = ["problem", "seed", "method"]
COLUMNS = [*KEY, "part", "severity", "scaling", "metric", "value"]
PACKAGES = ("scikit-learn", "torch", "transformers", "timm", "skorch", "numpy", "scipy")


class Store:
    """Results in a folder.

    Parameters
    ----------
    directory : Path
    """

    def __init__(self, directory):
        self.directory = Path(directory)
        info = self.directory / "run.json"
        self.info = json.loads(info.read_text()) if info.exists() else {}
        path = self.directory / "results.csv"
        self.results = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)

    def start(self, benchmark, settings):
        """Add a run to ``run.json``; exit rather than mix results of different settings."""
        settings = json.loads(json.dumps(settings))
        if self.info and self.info["settings"] != settings:
            raise SystemExit(
                f"{self.directory} holds results for other settings: {self.info['settings']}, now "
                f"{settings}. Choose another folder with --output, or delete this one."
            )
        self.info = self.info or {"benchmark": benchmark, "settings": settings, "runs": []}
        self.info["runs"].append(this_run())
        (self.directory / "rows").mkdir(parents=True, exist_ok=True)
        _replace(self.directory / "run.json", json.dumps(self.info, indent=1))

    def done(self):
        """Return the set of (problem, seed, method) that have results."""
        return set(self.results[KEY].itertuples(index=False, name=None))

    def add(self, key, records, samples):
        """Add all results of one method at once.

        Parameters
        ----------
        key : tuple of problem, seed and method
        records : list of dict
            Values of the columns after the key.
        samples : dict of str to ndarray
            Per-sample values.
        """
        np.savez_compressed(self._samples_path(key), **samples)
        new = pd.DataFrame(records).assign(**dict(zip(KEY, key, strict=True)))[COLUMNS]
        # Read the file again: another process may have added to it.
        path = self.directory / "results.csv"
        old = [pd.read_csv(path)] if path.exists() else []
        self.results = pd.concat([*old, new], ignore_index=True)
        _replace(path, self.results.to_csv(index=False))

    def samples(self, key):
        """Return the per-sample values, a dict of arrays; empty if their file is missing."""
        path = self._samples_path(key)
        if not path.exists():
            return {}
        with np.load(path) as arrays:
            return dict(arrays)

    def _samples_path(self, key):
        name = "-".join(re.sub(r"[^a-z0-9]+", "_", str(part).lower()) for part in key)
        return self.directory / "rows" / f"{name}.npz"


def this_run():
    """Return the command, date, versions and machine of this process."""
    arguments = sys.argv[1:]
    for option in {"--output", "--rst"} & set(arguments):  # local folders, no effect on results
        start = arguments.index(option)
        del arguments[start : start + 2]
    return {
        "command": f"python examples/benchmarks/{shlex.join([Path(sys.argv[0]).name, *arguments])}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": {
            "sklearn_diffuq": import_version(),
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "machine": machine(),
    }


def import_version():
    """Return the version of the imported package, installed or not."""
    import sklearn_diffuq

    return sklearn_diffuq.__version__


def machine():
    """Return the GPU, or the type of CPU and the number of threads."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def _replace(path, text):
    """Write a file atomically: an interrupted process leaves the old or the new content."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
