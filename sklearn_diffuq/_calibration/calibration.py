"""What held-out samples say for one kind of inference."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from sklearn_diffuq._path.covariance import NoiseScales
from sklearn_diffuq._path.distance import widening
from sklearn_diffuq._propagation.margin_table import MomentTable
from sklearn_diffuq._state import State


@dataclass(frozen=True)
class Calibration:
    """Noise scales and temperature of one kind of inference.

    Attributes
    ----------
    scales : NoiseScales
        All zero where noise does not help.
    temperature : float
        Where the distance to the training data is zero.
    nll : float
        Held-out negative log-likelihood, in nats per row.
    table : MomentTable or None
        Of the held-out rows, where there is noise.
    """

    scales: NoiseScales
    temperature: float
    nll: float
    table: MomentTable | None = None

    @property
    def has_noise(self) -> bool:
        """Whether the path is anything but its mean."""
        return self.scales.any_noise

    def temperature_at(self, distance: Tensor) -> Tensor:
        """Return the temperature at standardised distances (n,), shape (n, 1), float64.

        See eq. 5.2.
        """
        factor = widening(self.scales.distance, distance.double())
        return torch.as_tensor(self.temperature * factor)[:, None]

    def to_state(self) -> State:
        """Return the numbers, and the table where there is one."""
        numbers = {"temperature": self.temperature, "nll": self.nll}
        state = State({"scales": asdict(self.scales), **numbers})
        return state if self.table is None else state.with_parts(table=self.table.to_state())

    @classmethod
    def from_state(cls, state: State) -> "Calibration":
        """Build the calibration that `to_state` described."""
        table = state.part("table")
        return cls(
            NoiseScales(**state.config["scales"]),
            state.config["temperature"],
            state.config["nll"],
            MomentTable.from_state(table) if table.tensors else None,
        )
