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
        modules = [module for root in roots for module in root.modules()]
        parameters = [p for m in modules for p in m._parameters.values() if p is not None]
        # Set one by one, and without eval() and train(): those may be overridden.
        training = [module for module in modules if module.training]
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        try:
            for module in training:
                module.training = False
            for parameter in learning:
                parameter.requires_grad_(False)
            yield
        finally:
            for module in training:
                module.training = True
            for parameter in learning:
                parameter.requires_grad_(True)
