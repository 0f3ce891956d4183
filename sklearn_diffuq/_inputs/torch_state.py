"""Torch's process-wide settings, set aside while the package computes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def own_torch_state() -> Iterator[None]:
    """Compute as in a fresh process, whatever the caller has set, and give the settings back.

    Default dtype float32, default device CPU, gradients on, neither autocast nor inference mode.

    Examples
    --------
    >>> import torch
    >>> from sklearn_diffuq._inputs.torch_state import own_torch_state
    >>> with torch.inference_mode(), own_torch_state():
    ...     torch.ones(2, requires_grad=True).sum().requires_grad
    True
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":  # entering one slows every call down
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield
