"""Fine-tuning of a copy of the wrapped model."""

import copy

from sklearn_diffuq._backbones.freezing import lock_of
from sklearn_diffuq._backbones.precision import make_trainable
from sklearn_diffuq._training.classification import fit_classifier
from sklearn_diffuq.baselines._backbone_modules import modules_of
from sklearn_diffuq.baselines._base import loop_options

_WEIGHT_DECAY = 0.01


def trainable_copy(backbone):
    """Return a copy of a backbone in which every parameter is trained."""
    with lock_of(backbone.module):  # another thread may just have it in pieces
        backbone = copy.deepcopy(backbone)
    make_trainable(modules_of(backbone))
    return backbone


def fine_tune(estimator, backbone, losses, training, held_out, seed, *, penalty=None, scores=None):
    """Train a backbone in place; keep the epoch with the lowest loss on the held-out rows.

    Parameters
    ----------
    estimator : BaselineClassifier
        Its training parameters are used.
    backbone : Backbone
        A `trainable_copy`.
    losses : callable
        ``losses(batch, y)`` returns the loss of each row, shape (m,).
    training, held_out : LabelledInputs
    seed : int
    penalty, scores : callable, default=None
        As for `fit_classifier`.

    Returns
    -------
    history : list of dict
        One entry per epoch.
    """
    return fit_classifier(
        modules_of(backbone),
        losses,
        training,
        held_out,
        estimator.batch_size,
        loop_options(estimator, seed, device=backbone.device, weight_decay=_WEIGHT_DECAY),
        penalty=penalty,
        scores=scores,
    )
