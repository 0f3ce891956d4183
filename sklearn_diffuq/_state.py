"""What a fitted object is built again from: values that JSON knows, and tensors."""

from dataclasses import dataclass, field

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

    config: dict
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
