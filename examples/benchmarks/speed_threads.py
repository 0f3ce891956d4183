"""Does a table take no more threads than pay? The README's example alone and beside other jobs.

    python examples/benchmarks/speed.py --data threads

The example (the first of README.md, on a table) runs in a fresh process without OMP_NUM_THREADS:
alone, then beside two jobs that keep two threads each busy with matrix products, and both again
with one thread. Seconds on the wall and of the processor are split by stage, and every process says
which pools of threads it has. The bar is a factor of three between beside and alone.
"""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pkgutil import resolve_name

STAGES = {
    "wrapped model": ("sklearn_diffuq._classifier", "fit_wrapped"),
    "statistics": ("sklearn_diffuq._fit_path", "collect_statistics"),
    "distance": ("sklearn_diffuq._fit_path", "fit_covariance"),
    "frozen pass": ("sklearn_diffuq._calibration.calibrator.Calibrator", "reference"),
    "rank": ("sklearn_diffuq._fit_path", "choose_rank"),
    "start": ("sklearn_diffuq._fit_path", "unified_transition"),
    "training": ("sklearn_diffuq._fit_path", "train_transition"),
    "own states": ("sklearn_diffuq._fit_path", "own_states"),
    "calibration": ("sklearn_diffuq._calibration.calibrator.Calibrator", "calibrate"),
}
BUSY = "import torch\ntorch.set_num_threads(2)\na = torch.randn(700, 700)\nwhile True: a @ a"
N_JOBS = 2


def readme_example():
    """Run the example in this process; print a line of JSON with the seconds of its stages."""
    import torch
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split
    from threadpoolctl import threadpool_info
    from timing import stage_seconds

    from sklearn_diffuq import DiffusionCalibratedClassifier

    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    X_train, X_test, y_train, _ = train_test_split(X, y, random_state=0)
    stages = {name: (resolve_name(owner), what) for name, (owner, what) in STAGES.items()}
    start = time.perf_counter()
    with stage_seconds(stages, time.perf_counter) as wall:
        with stage_seconds(stages, time.process_time) as processor:
            classifier = DiffusionCalibratedClassifier(random_state=0).fit(X_train, y_train)
        for ask in ("predict_proba", "predict_uncertainty", "score_samples"):
            begin = time.perf_counter(), time.process_time()
            getattr(classifier, ask)(X_test)
            end = time.perf_counter(), time.process_time()
            wall[ask], processor[ask] = end[0] - begin[0], end[1] - begin[1]
    pools = {p["filepath"].split("/")[-1]: p["num_threads"] for p in threadpool_info()}
    found = {
        "wall": time.perf_counter() - start,
        "processor": time.process_time(),
        "stages": {name: (wall[name], processor[name]) for name in wall},
        "pools": pools | {"torch": torch.get_num_threads()},
    }
    print(json.dumps(found))


def run_example(threads=None, n_jobs=0):
    """Run the example in a process of its own; return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    jobs = [subprocess.Popen([sys.executable, "-c", BUSY], env=environment) for _ in range(n_jobs)]
    try:
        command = [sys.executable, "-W", "ignore", __file__]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    return json.loads(done.stdout.splitlines()[-1])


def measure_threads():
    """Return method -> function that yields lines (part, metric, value)."""
    return {
        "alone": _lines,
        f"beside {N_JOBS} jobs": partial(_lines, n_jobs=N_JOBS),
        "alone, one thread": partial(_lines, threads=1),
        f"beside {N_JOBS} jobs, one thread": partial(_lines, threads=1, n_jobs=N_JOBS),
    }


def _lines(**options):
    seen = run_example(**options)
    stages = {"whole": (seen["wall"], seen["processor"]), **seen["stages"]}
    for stage, (wall, processor) in stages.items():
        yield "threads", stage, wall
        yield "processor", stage, processor
    for library, n in seen["pools"].items():
        yield "pools", library, n


if __name__ == "__main__":
    readme_example()
