"""How a network is trained."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class LoopOptions:
    """How `train_module` trains.

    Attributes
    ----------
    max_epochs : int
        Number of epochs.
    lr : float
        Highest learning rate.
    weight_decay : float, default=0.0
        Decoupled weight decay of matrices; vectors and biases have none.
    patience : int, default=None
        Stop after this many epochs without a better score; None never stops early.
    average : float, default=0.0
        Decay, per step, of the moving average of the weights; 0 means no averaging.
    schedule : {"cosine", None}, default="cosine"
        "cosine" raises the learning rate over the first twentieth of the steps, then lowers it
        to 0; None keeps it constant.
    grad_clip : float, default=1.0
        Largest norm of the gradient; None means no limit.
    callbacks : list of skorch callbacks, default=None
        Added to the loop. One that raises KeyboardInterrupt at the end of an epoch, as skorch's
        EarlyStopping does, stops training; an interrupt from anywhere else is raised.
    device : str or torch.device, default="cpu"
        Where training takes place.
    seed : int, default=0
        Seed of batch order, dropout and the generator.
    verbose : int, default=0
        Above 0, print one line per epoch.
    compile : bool, default=False
        Compile the module's forward while it trains.
    """

    max_epochs: int
    lr: float
    weight_decay: float = 0.0
    patience: int | None = None
    average: float = 0.0
    schedule: str | None = "cosine"
    grad_clip: float | None = 1.0
    callbacks: list[Any] | None = None
    device: str | torch.device = "cpu"
    seed: int = 0
    verbose: int = 0
    compile: bool = False
