"""Freezing a model: one lock for all cuts of it, and flags that are restored."""

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

# Stubs are set on the module itself, so all cuts of one module share one lock. Locks are kept here
# and not on the Backbone: they cannot be pickled.
_LOCKS: weakref.WeakKeyDictionary[nn.Module, "threading.RLock"] = weakref.WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


def lock_of(module: nn.Module) -> "threading.RLock":
    """Return the re-entrant lock of a module."""
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(module, threading.RLock())


@contextmanager
def frozen(owner: nn.Module, roots: Sequence[nn.Module]) -> Iterator[None]:
    """Hold a lock with modules in eval mode and no parameter requiring a gradient.

    Re-entrant. Every ``training`` and ``requires_grad`` flag is restored on leaving, also after an
    error.

    Parameters
    ----------
    owner : torch.nn.Module
        Whose lock is held.
    roots : sequence of torch.nn.Module
        What is frozen, with all submodules.
    """
    with lock_of(owner):
        modes = [(module, module.training) for root in roots for module in root.modules()]
        flags = [(p, p.requires_grad) for root in roots for p in root.parameters()]
        try:
            # Set one by one, and without eval() and train(): those may be overridden.
            for module, _ in modes:
                module.training = False
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)
