"""What a fitted object is restored from: values that JSON knows, and tensors."""

from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class State:
    """The state of an object, made by its `to_state` and read by its `from_state`.

    Attributes
    ----------
    config : dict
        Values that JSON knows.
    tensors : dict of str to Tensor
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def with_parts(self, **parts: "State") -> "State":
        """Return this state with the states of parts inside, under their names."""
        config, tensors = dict(self.config), dict(self.tensors)
        for name, part in parts.items():
            config[name] = part.config
            tensors |= {f"{name}.{key}": value for key, value in part.tensors.items()}
        return State(config, tensors)

    def part(self, name: str) -> "State":
        """Return the state of a part; its config is empty if it was saved without one."""
        start = name + "."
        tensors = {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}
        return State(self.config.get(name, {}), tensors)


def plain(value: object) -> str | bool | int | float | list[int] | None:
    """Return a parameter as JSON knows it, else None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, torch.device):
        value = str(value)
    if isinstance(value, (tuple, list)) and value and all(isinstance(v, Integral) for v in value):
        return [int(v) for v in value]
    return value if isinstance(value, (str, bool, int, float)) else None


def column_names(estimator: object) -> list[str] | None:
    """Return the ``feature_names_in_`` of an estimator for JSON, None if there are none."""
    names = getattr(estimator, "feature_names_in_", None)
    return None if names is None else names.tolist()
