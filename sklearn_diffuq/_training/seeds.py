"""Random numbers that leave the caller's random state alone."""

import contextlib
import threading
from collections.abc import Iterator

import torch

# Dropout draws from torch's global generators, which all threads share: one training at a time has
# them. Explicit generators do not reach the dropout inside of fused attention.
_GENERATORS = threading.RLock()


@contextlib.contextmanager
def own_torch_seed(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed dropout's global generators of `device`, and give their state back afterwards.

    Other threads that ask for it wait. A lock of a module (`lock_of`) that other threads may hold
    has to be taken before, not inside.
    """
    device = torch.device(device)
    with _GENERATORS:
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
