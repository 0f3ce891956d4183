"""Operations that torch dispatches: what a GPU is asked to do, whatever the machine."""

from torch.utils._python_dispatch import TorchDispatchMode


class _Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += 1
        return function(*args, **(kwargs or {}))


def operations(call):
    """Return how many operations a call dispatches."""
    with _Counter() as counter:
        call()
    return counter.n
