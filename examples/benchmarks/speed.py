"""Time, memory and dispatched operations, relative to the wrapped model's own loop.

    python examples/benchmarks/speed.py --quick
    python examples/benchmarks/speed.py
    python examples/benchmarks/speed.py --device cuda
    python examples/benchmarks/speed.py --data llama --device cuda
    python examples/benchmarks/speed.py --data threads

The loop is the one that a user would write: the model in evaluation mode, without gradients, texts
sorted by length, at the best of a few batch sizes. It gets the inputs encoded in the same way, and
is timed in turn with the predictions that are compared with it. Times of a fit are in units of one
epoch of fine-tuning the wrapped model on the same training samples, in bfloat16 on a GPU, and of one
forward pass of all samples of the fit. Noise is set to the same scales in every fit, since a path
without noise would be no more than its mean.

"Operations" counts what torch dispatches for one chunk of prediction and for one training step,
relative to a forward pass of the wrapped model. That needs no GPU and does not depend on the
machine: the models counted have the depth of real ones and narrow layers.

Without --quick, the first models are those beside the data (see ``vision.py`` and ``text.py``);
they are left out if SKLEARN_DIFFUQ_DATA is not set. Results are kept, and a command given again
computes only what is missing. --minutes bounds the time: what has not begun by then is left out.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

import torch
from harness import OUTPUT, as_record
from rendering import Section
from report import show_tables
from speed_cases import CASES, COUNTED, GIVEN, Size, make
from speed_measures import count_operations, units
from speed_tables import sections
from store import Store
from tqdm import tqdm

SIZES = {
    "quick": {
        "ViT, Fashion-MNIST": Size(128, 64, 128, seconds=0.2),
        "MiniLM, movie reviews": Size(48, 48, 48, seconds=0.2),
        "FT-Transformer, table": Size(256, 128, 1024, seconds=0.2),
    },
    "cpu": {
        "ViT, Fashion-MNIST": Size(1024, 512, 512),
        "MiniLM, movie reviews": Size(300, 300, 256),
        "MiniLM, CLINC150": Size(1500, 300, 256),
        "FT-Transformer, table": Size(2048, 512, 4096),
        "ViT-B/16, 224 px": Size(16, 16, 16, fit=False),
        "BERT-base, 128 tokens": Size(16, 16, 16, fit=False),
    },
    "cuda": {
        "ViT-B/16, 224 px": Size(512, 128, 512),
        "BERT-base, 128 tokens": Size(1024, 256, 1024),
        "MiniLM, movie reviews": Size(1024, 512, 1024),
        "ViT, Fashion-MNIST": Size(2048, 512, 4096),
        "MiniLM, CLINC150": Size(1500, 300, 1024),
        "FT-Transformer, table": Size(4096, 1024, 16384),
    },
}
MINUTES = {"quick": 2.5, "cpu": 60.0, "cuda": 3.5}


def cases(store, mode, options, device):
    """Measure the missing units of every case until the time is over; return what is left out."""
    end, left_out = time.monotonic() + 60 * options.minutes, []
    names = [name for name in SIZES[mode] if not options.cases or name in options.cases]
    if "SKLEARN_DIFFUQ_DATA" not in os.environ:
        left_out += [name for name in names if name in GIVEN]
        names = [name for name in names if name not in GIVEN]
    for name in tqdm(names, unit="model"):
        case = None
        for method, measure in units(SIZES[mode][name], quick=mode == "quick").items():
            key = name, 0, method
            if key in store.done():
                continue
            if time.monotonic() > end:
                left_out.append(f"{name}: {method}")
                continue
            case = case or make(name, SIZES[mode][name], device)
            try:
                store.add(key, [as_record(*record) for record in measure(case)], {})
            except ImportError as error:
                left_out.append(f"{name}: {method} ({error})")
    return left_out


def counts(store, quick):
    """Count the operations of the models that have not been counted yet."""
    for name in tqdm(list(COUNTED)[: 1 if quick else None], unit="model"):
        if (name, 0, "operations") not in store.done():
            case = make(name, Size(64, 64, 16), "cpu")
            store.add(
                (name, 0, "operations"), [as_record(*r) for r in count_operations(case)], {}
            )


def main():
    """Compute the missing results and print the tables; with --rst, also write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples, the fastest methods")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="CASE")
    parser.add_argument("--minutes", type=float, help="nothing is begun after these")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rst", type=Path, help="folder for the tables of the documentation")
    options = parser.parse_args()
    mode = "quick" if options.quick else options.device
    options.minutes = options.minutes or MINUTES[mode]
    name = {"quick": "speed-quick", "cpu": "speed", "cuda": "speed-cuda"}[mode]
    if options.device == "cpu":
        torch.set_num_threads(1)
    store = Store(options.output or OUTPUT / name)
    store.start(name, {"quick": options.quick, "device": options.device})
    counts(store, options.quick)
    left_out = cases(store, mode, options, options.device)
    if left_out:
        print("Left out:", *left_out, sep="\n  ")
    show_tables(store, sections(store.results), options.rst)


if __name__ == "__main__":
    sys.exit(main())
