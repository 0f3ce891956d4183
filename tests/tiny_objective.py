"""A small objective of the unified transition, and its losses."""

import numpy as np
import torch
from tiny_backbones import ALL

from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs, LabelledInputs
from sklearn_diffuq._path.covariance import NO_NOISE, fit_covariance
from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._training.loop_options import LoopOptions
from sklearn_diffuq._transition.closed_form_start import unified_transition
from sklearn_diffuq._transition.objective import PathObjective
from sklearn_diffuq._transition.training_options import TrainingOptions


class Rows(EncodedInputs):
    """Rows that are a ready batch."""

    def __init__(self, batch):
        self.tensors, self.lengths = batch, None

    def __len__(self):
        return len(next(iter(self.tensors.values())))

    def batch(self, rows, length=None, device="cpu"):
        return {name: value[rows] for name, value in self.tensors.items()}


def objective_of(
    name="bert", rank=2, counts=None, sample_weight=None, scales=NO_NOISE, max_epochs=10, **weights
):
    backbone, batch = ALL[name]()
    grids = [time_grid(backbone.n_blocks, n) for n in counts or (backbone.n_blocks,)]
    steps = sorted({step for grid in grids for step in steps_of(grid)})
    statistics = collect_statistics(backbone, [batch], steps, with_moments=True)
    covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
    transition = unified_transition(backbone, steps, rank, statistics.moments)
    with torch.no_grad():
        transition.log_variance.copy_((0.1 * covariance.token_variances).log())
    n = len(next(iter(batch.values())))
    sample_weight = torch.ones(n) if sample_weight is None else torch.tensor(sample_weight)
    training = LabelledInputs(Rows(batch), torch.arange(n) % 2, sample_weight)
    weights = {"path_weight": 1.0, "distillation_weight": 1.0, "label_weight": 1.0} | weights
    loop = LoopOptions(max_epochs=max_epochs, lr=1e-3)
    options = TrainingOptions(batch_size=4, precision="float32", loop=loop, **weights)
    return PathObjective(backbone, transition, covariance, scales, grids, training, 1.7, options)


def losses_of(objective, epoch, rows=(0, 1, 2, 3)):
    with objective.backbone.frozen():
        return objective(np.array(rows), epoch, torch.Generator().manual_seed(0))
