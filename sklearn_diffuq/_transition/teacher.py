"""What the frozen path makes of the training rows, computed once where memory allows it."""

import os
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import Batch, Context
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._path.time_grid import Grid

# Share of a device's memory that states and encoded rows may take; other processes share a CPU's.
KEPT_SHARE = {"cuda": 0.3, "cpu": 0.05}


class Teacher:
    """Batches of training rows with their frozen states.

    Rows of one shape (tables, images) are kept on the device from epoch to epoch, with their
    states, if all of them take no more than `KEPT_SHARE` of its memory. Texts are not.

    Parameters
    ----------
    backbone : Backbone
    inputs : EncodedInputs
        The training rows.
    grids : sequence of tuple of int
        The times at which states are asked for.
    """

    def __init__(self, backbone: Backbone, inputs: EncodedInputs, grids: Sequence[Grid]) -> None:
        self.backbone = backbone
        self.inputs = inputs
        self.times = tuple(sorted({time for grid in grids for time in grid}))
        self._keeps = inputs.lengths is None
        self._rows: Batch = {}
        self._states: Tensor | None = None  # of shape (n_times, n_rows, t, d)
        self._known = np.zeros(0, bool)

    @torch.no_grad()
    def __call__(
        self, rows: np.ndarray, grid: Grid, device: torch.device
    ) -> tuple[Batch, Context, Tensor]:
        """Return the rows' batch, its context, and the states (S + 1, n, t, d) on a grid."""
        index = torch.from_numpy(rows)
        if len(self._known) and self._known[rows].all():
            assert self._states is not None
            index = index.to(device)
            batch = {name: values[index] for name, values in self._rows.items()}
            _, context = self.backbone.embed(batch)
            return batch, context, self._on(grid, self.times, self._states[:, index])
        batch = self.inputs.batch(rows, device=device)
        h, context = self.backbone.embed(batch)
        times = self.times if self._keeps else grid
        states = torch.stack(self.states(times, h, context))
        if self._keeps:
            self._keep(rows, index.to(device), batch, states)
        return batch, context, self._on(grid, times, states)

    def states(self, times: Sequence[int], h: Tensor, context: Context) -> list[Tensor]:
        """Return the states (n, t, d) of the frozen path at some times, of which 0 is the first."""
        states = [h]
        for start, stop in pairwise(times):
            states.append(self.backbone.advance(states[-1], context, start, stop).to(h))
        return states

    def _keep(self, rows: np.ndarray, index: Tensor, batch: Batch, states: Tensor) -> None:
        if self._states is None:
            tensors = (states.transpose(0, 1), *batch.values())
            size = len(self.inputs) * sum(x[0].numel() * x.element_size() for x in tensors)
            self._keeps = size <= kept_memory(states.device)
            if not self._keeps:
                return
            n, (n_times, _, *shape) = len(self.inputs), states.shape
            self._states = states.new_empty((n_times, n, *shape))
            self._rows = {name: x.new_empty((n, *x.shape[1:])) for name, x in batch.items()}
            self._known = np.zeros(n, bool)
        pairs = [(self._rows[name], values) for name, values in batch.items()]
        pairs.append((self._states.transpose(0, 1), states.transpose(0, 1)))
        if all(kept.shape[1:] == values.shape[1:] for kept, values in pairs):
            for kept, values in pairs:
                kept[index] = values
            self._known[rows] = True

    def _on(self, grid: Grid, times: Sequence[int], states: Tensor) -> Tensor:
        if tuple(times) == tuple(grid):
            return states
        return torch.stack([states[times.index(time)] for time in grid])


def kept_memory(device: torch.device) -> float:
    """Return how many bytes may be kept on a device."""
    share = KEPT_SHARE.get(device.type, 0.0)
    if device.type == "cuda":
        return share * torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):  # Windows
        return 0.0
    return share * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
