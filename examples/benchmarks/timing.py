"""Measuring: seconds on the CPU or a GPU, peak memory, and operations dispatched."""

import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

TIMING_SECONDS = 2
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def now():
    """Return seconds: those of this process where it has one thread, so that others do not count.

    With a GPU or several threads it is the time on the wall, after what the GPU has been given.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def best_seconds(calls, seconds=TIMING_SECONDS, at_least=3, at_most=10):
    """Return the fewest seconds of each call.

    All are timed alternately, `at_least` times and on for up to `seconds` for each of them. The
    fastest run counts: other processes can only slow it down.

    Parameters
    ----------
    calls : dict of str to callable
    seconds : float, default=TIMING_SECONDS
    at_least, at_most : int
        Numbers of runs of each call.

    Returns
    -------
    best : dict of str to float
    """
    best, begin = dict.fromkeys(calls, np.inf), now()
    for repeat in range(at_most):
        if repeat >= at_least and now() - begin > seconds * len(calls):
            break
        for name, call in calls.items():
            start = now()
            call()
            best[name] = min(best[name], now() - start)
    return best


class Meter:
    """Seconds and peak memory of a ``with`` block.

    ``mib`` is the peak memory added on the GPU, if there is one, and ``peak_mib`` the peak itself.
    Else they are those of the resident memory, which only Linux can reset for every block, and nan
    on other systems.
    """

    def __enter__(self):
        self._cuda = torch.cuda if torch.cuda.is_available() else None
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
        self._known = bool(self._cuda) or _forget_peak()
        self._before = self._memory("VmRSS")
        self._start = now()
        return self

    def __exit__(self, *error):
        self.seconds = now() - self._start
        self.peak_mib = self._memory("VmHWM")
        self.mib = self.peak_mib - self._before

    def _memory(self, field):
        if self._cuda:
            is_now = field == "VmRSS"
            used = self._cuda.memory_allocated() if is_now else self._cuda.max_memory_allocated()
            return used / 2**20
        if not self._known:
            return np.nan
        line = next(s for s in _STATUS.read_text().splitlines() if s.startswith(field))
        return int(line.split()[1]) / 1024


def _forget_peak():
    """Reset the peak of the resident memory; return whether that is possible."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


class OperationCount(TorchDispatchMode):
    """Number of operations that torch dispatches in a ``with`` block, those of gradients included.

    It depends neither on the machine nor on the sizes of the tensors, and is what a GPU waits for
    where the work of an operation is small.

    Attributes
    ----------
    n : int
    """

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count the operation and do it."""
        self.n += 1
        return function(*args, **(kwargs or {}))


def operations(call):
    """Return how many operations a call dispatches."""
    with OperationCount() as count:
        call()
    return count.n


@contextmanager
def stage_seconds(stages, clock=now):
    """Add up the seconds of functions and methods while a block runs.

    Parameters
    ----------
    stages : dict of str to (object, str)
        Name of a stage -> where its function lives, and what it is called there.
    clock : callable, default=now
        Returns seconds.

    Yields
    ------
    seconds : dict of str to float
        Zero for a stage that did not take place.
    """
    seconds = dict.fromkeys(stages, 0.0)

    def timed(name, function):
        def call(*args, **kwargs):
            start = clock()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += clock() - start

        return call

    patches = [
        patch.object(owner, attribute, timed(name, getattr(owner, attribute)))
        for name, (owner, attribute) in stages.items()
    ]
    for one in patches:
        one.start()
    try:
        yield seconds
    finally:
        for one in patches:
            one.stop()
