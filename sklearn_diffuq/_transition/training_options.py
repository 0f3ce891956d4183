"""How the unified transition is trained."""

from dataclasses import dataclass

import torch

from sklearn_diffuq._training.loop_options import LoopOptions


@dataclass(frozen=True)
class TrainingOptions:
    """Weights of the losses, batches, precision, and the options of the loop.

    Attributes
    ----------
    path_weight, distillation_weight, label_weight : float
        Weights of the losses of `PathObjective`.
    batch_size : int
        Most rows per training step.
    precision : {"auto", "float32", "bfloat16"}
        "bfloat16" computes the blocks under automatic mixed precision; "auto" does so on CUDA.
    loop : LoopOptions
    """

    path_weight: float
    distillation_weight: float
    label_weight: float
    batch_size: int
    precision: str
    loop: LoopOptions

    @property
    def mixed_precision(self) -> bool:
        """Whether to compute in bfloat16."""
        if self.precision == "auto":
            return torch.device(self.loop.device).type == "cuda"
        return self.precision == "bfloat16"
