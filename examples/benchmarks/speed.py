"""Time, memory and dispatched operations, relative to the wrapped model's own loop.

    python examples/benchmarks/speed.py --quick
    python examples/benchmarks/speed.py
    python examples/benchmarks/speed.py --device cuda
    python examples/benchmarks/speed.py --device cuda --data llama
    python examples/benchmarks/speed.py --data llama --n-blocks 2 --width 512
    python examples/benchmarks/speed.py --data linear
    python examples/benchmarks/speed.py --data threads

The loop is the one that a user would write: the model in evaluation mode, without gradients, texts
sorted by length, at the best of a few batch sizes. It gets the inputs encoded in the same way, and
is timed in turn with the predictions that are compared with it. Times of a fit are in units of one
epoch of fine-tuning the wrapped model on the same training samples, in bfloat16 on a GPU, and of
one forward pass of all samples of the fit. Noise is set to the same scales in every fit, since a
path without noise would be no more than its mean.

"Operations" counts what torch dispatches for one chunk of prediction and for one training step,
relative to a forward pass of the wrapped model. That needs no GPU and does not depend on the
machine: the models counted have the depth of real ones and narrow layers.

The models beside the data (see ``vision.py`` and ``text.py``) are left out if SKLEARN_DIFFUQ_DATA
is not set. Results are kept, and a command given again computes only what is missing. --minutes
bounds the time: what has not begun by then is left out. The other kinds of --data are described in
``speed_decoder.py``, ``speed_linear.py`` and ``speed_threads.py``.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

import torch
from harness import OUTPUT, as_record
from report import show_tables
from speed_cases import COUNTED, GIVEN, Size, make
from speed_decoder import measure_decoder
from speed_linear import measure_linear
from speed_measures import count_operations, units
from speed_tables import sections
from speed_threads import measure_threads
from store import Store
from tqdm import tqdm

SIZES = {
    "quick": {
        "FT-Transformer, table": Size(256, 128, 1024, seconds=0.1),
        "ViT, Fashion-MNIST": Size(128, 64, 128, seconds=0.1, fits=("blockwise", "S = L/2")),
        "MiniLM, movie reviews": Size(32, 32, 32, seconds=0.1, fits=("blockwise",)),
    },
    "cpu": {
        "ViT, Fashion-MNIST": Size(1024, 512, 512),
        "MiniLM, movie reviews": Size(300, 300, 256),
        "MiniLM, CLINC150": Size(1500, 300, 256),
        "FT-Transformer, table": Size(2048, 512, 4096),
        "ViT-B/16, 224 px": Size(16, 16, 16, is_fit_timed=False),
        "BERT-base, 128 tokens": Size(16, 16, 16, is_fit_timed=False),
    },
    "cuda": {
        "ViT-B/16, 224 px": Size(512, 128, 512, seconds=0.5),
        "BERT-base, 128 tokens": Size(1024, 256, 1024, seconds=0.5),
        "MiniLM, movie reviews": Size(1024, 512, 1024, seconds=0.5),
        "ViT, Fashion-MNIST": Size(2048, 512, 4096, seconds=0.5),
        "MiniLM, CLINC150": Size(1500, 300, 1024, seconds=0.5),
        "FT-Transformer, table": Size(4096, 1024, 16384, seconds=0.5),
    },
}
MINUTES = {"quick": 2.5, "cpu": 60.0, "cuda": 3.5}


def work(options, mode):
    """Return (problem, method) -> function that returns lines (part, metric, value), in order."""
    if options.data == "threads":
        return {("README example", m): call for m, call in measure_threads().items()}
    if options.data == "linear":
        return {("cost", m): call for m, call in measure_linear(options.quick).items()}
    if options.data == "llama":
        found = measure_decoder(options.n_blocks, options.width, options.device)
        name = f"decoder, {options.n_blocks} blocks, width {options.width}"
        return {(name, m): call for m, call in found.items()}
    found = {
        (name, "operations"): partial(_count, name)
        for name in list(COUNTED)[: 1 if options.quick else None]
    }
    for name, size in SIZES[mode].items():
        if name in GIVEN and "SKLEARN_DIFFUQ_DATA" not in os.environ:
            print(f"{name} left out: SKLEARN_DIFFUQ_DATA is not set")
            continue
        for method, measure in units(size, options.quick).items():
            found[name, method] = partial(_measure, measure, name, size, options.device)
    return found


def _count(name):
    return count_operations(make(name, Size(64, 64, 16), "cpu"))


def _measure(measure, name, size, device):
    return measure(make(name, size, device))


def compute(store, found, minutes):
    """Compute what is missing until the time is over; return what was left out, and why."""
    end, left_out = time.monotonic() + 60 * minutes, []
    missing = {key: call for key, call in found.items() if (key[0], 0, key[1]) not in store.done()}
    for (problem, method), call in tqdm(missing.items(), unit="part"):
        if time.monotonic() > end:
            left_out.append(f"{problem}: {method} (no time)")
            continue
        try:
            records = [as_record(*line) for line in call()]
        except (ImportError, RuntimeError) as error:  # of memory, too: the others go on
            left_out.append(f"{problem}: {method} ({type(error).__name__}: {str(error)[:300]})")
            continue
        store.add((problem, 0, method), records, {})
    return left_out


def main():
    """Compute the missing results and print the tables; with --rst, also write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples, the fastest methods")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    data = ("models", "llama", "linear", "threads")
    parser.add_argument("--data", choices=data, default="models")
    parser.add_argument("--n-blocks", type=int, default=16, help="of the Llama")
    parser.add_argument("--width", type=int, default=2048, help="of the Llama")
    parser.add_argument("--minutes", type=float, help="nothing is begun after these")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rst", type=Path, help="folder for the tables of the documentation")
    options = parser.parse_args()
    if options.quick and options.rst:
        parser.error("a quick run is too small to publish")
    mode = "quick" if options.quick else options.device
    name = {"quick": "speed-quick", "cpu": "speed", "cuda": "speed-cuda"}[mode]
    if options.device == "cpu":
        torch.set_num_threads(1)
    store = Store(options.output or OUTPUT / name)
    store.start(name, {"quick": options.quick, "device": options.device})
    left_out = compute(store, work(options, mode), options.minutes or MINUTES[mode])
    if left_out:
        print("Left out:", *left_out, sep="\n- ")
    show_tables(store, sections(store.results), options.rst)


if __name__ == "__main__":
    sys.exit(main())
