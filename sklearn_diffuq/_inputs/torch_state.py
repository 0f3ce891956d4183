"""Torch's settings, set aside while the package computes."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache

import torch
from threadpoolctl import ThreadpoolController


class _DefaultDtype:
    """Holds torch's default dtype, which all threads share, at float32 while anyone needs it."""

    def __init__(self) -> None:
        self.guard, self.n_users, self.callers = threading.Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self.guard:
            if self.n_users == 0:
                self.callers = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self.n_users += 1

    def __exit__(self, *error: object) -> None:
        with self.guard:
            self.n_users -= 1
            if self.n_users == 0:  # not before: another thread may still compute
                torch.set_default_dtype(self.callers)


_float32 = _DefaultDtype()


@contextmanager
def own_torch_state() -> Iterator[None]:
    """Compute as in a fresh process, whatever the caller has set, and give the settings back.

    Default dtype float32, default device CPU, gradients on, neither autocast nor inference mode.
    All but the dtype are settings of the thread.

    Examples
    --------
    >>> import torch
    >>> from sklearn_diffuq._inputs.torch_state import own_torch_state
    >>> with torch.inference_mode(), own_torch_state():
    ...     torch.ones(2, requires_grad=True).sum().requires_grad
    True
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":  # entering one slows every call down
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_float32)
        yield


@cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")  # torch's is loaded by now


def at_most_threads(n: int | None) -> AbstractContextManager[object]:
    """Return a context in which this thread computes with `n` CPU threads at most; None: with all.

    Threads that have next to nothing to do wait for each other by spinning, and beside other work
    they wait for minutes. `torch.set_num_threads` would also hold for threads that start meanwhile,
    and for good.
    """
    if n is None or torch.get_num_threads() <= n:
        return nullcontext()
    return _openmp().limit(limits=n)
