"""Random numbers that leave the caller's random state alone."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def own_torch_seed(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed dropout's global generators of `device`, and give their state back afterwards."""
    device = torch.device(device)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        with torch.random.fork_rng(devices=[index]), torch.cuda.device(index):
            torch.default_generator.manual_seed(seed)
            torch.cuda.manual_seed(seed)
            yield
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
