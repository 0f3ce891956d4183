"""The folder of one benchmark: what was run, one CSV file of results, and values of single rows.

``run.json`` says which command made the results, when, and with which versions. ``results.csv`` has
one line per measured value. ``rows/`` has one file per problem, seed and method, from which
pictures and differences between methods on the same rows are made.
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
        """Note a run; refuse to mix results of different settings."""
        settings = json.loads(json.dumps(settings))
        if self.info and self.info["settings"] != settings:
            raise SystemExit(
                f"{self.directory} holds results of other settings: {self.info['settings']}, now "
                f"{settings}. Give another folder with --output, or delete this one."
            )
        self.info = self.info or {"benchmark": benchmark, "settings": settings, "runs": []}
        self.info["runs"].append(this_run())
        (self.directory / "rows").mkdir(parents=True, exist_ok=True)
        _replace(self.directory / "run.json", json.dumps(self.info, indent=1))

    def done(self):
        """Return the set of (problem, seed, method) that have results."""
        return set(self.results[KEY].itertuples(index=False, name=None))

    def add(self, key, records, rows):
        """Add the results of one method, all or none of them.

        Parameters
        ----------
        key : tuple of problem, seed and method
        records : list of dict
            Values for the columns after those of the key.
        rows : dict of str to ndarray
            Values of single rows.
        """
        np.savez_compressed(self._rows_path(key), **rows)
        new = pd.DataFrame(records).assign(**dict(zip(KEY, key, strict=True)))[COLUMNS]
        # Read again: another command may have added to the file in the meantime.
        path = self.directory / "results.csv"
        old = [pd.read_csv(path)] if path.exists() else []
        self.results = pd.concat([*old, new], ignore_index=True)
        _replace(path, self.results.to_csv(index=False))

    def rows(self, key):
        """Return the values of single rows, a dict of arrays; empty if their file is gone."""
        path = self._rows_path(key)
        if not path.exists():
            return {}
        with np.load(path) as arrays:
            return dict(arrays)

    def _rows_path(self, key):
        name = "-".join(re.sub(r"[^a-z0-9]+", "_", str(part).lower()) for part in key)
        return self.directory / "rows" / f"{name}.npz"


def this_run():
    """Return the command, date, versions and machine of this process."""
    arguments = sys.argv[1:]
    for option in {"--output", "--rst"} & set(arguments):  # change no result, name a folder here
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
    """Return the version of the package that is imported, installed or not."""
    import sklearn_diffuq

    return sklearn_diffuq.__version__


def machine():
    """Return the processor that the models run on, and the number of threads."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def _replace(path, text):
    """Write a file so that a process that is stopped leaves the old one or the new one."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
