"""Warnings about held-out rows that cannot stand for rows to come."""

import torch

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._inputs.batching import kept_chunk, unpadded_batches
from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._inputs.rows import random_rows
from sklearn_diffuq._inputs.shared_rows import shared_rows
from sklearn_diffuq._path.embedding_shift import HELD_OUT_SHIFT, EmbeddingMoments, look_at
from sklearn_diffuq._warnings import warn_user
from sklearn_diffuq.exceptions import CalibrationWarning

SHARED_SHARE = 0.25  # of the held-out rows may be training rows, beyond what chance explains
MIN_SHARED_ROWS = 10  # fewer may be an accident
MAX_LOOKED_AT = 256  # held-out rows whose embedding is looked at


def warn_of_unfit_rows(
    backbone: Backbone,
    training: LabelledInputs,
    held_out: LabelledInputs,
    embedding: EmbeddingMoments | None,
    seed: int,
) -> None:
    """Say where held-out rows are training rows, or look like none.

    Parameters
    ----------
    backbone : Backbone
    training, held_out : LabelledInputs
    embedding : EmbeddingMoments or None
        Of the training rows.
    seed : int
        Chooses the held-out rows that are looked at.
    """
    source = held_out.inputs.source
    n_shared, share = shared_rows(training.inputs, held_out.inputs)
    if n_shared >= MIN_SHARED_ROWS and share > SHARED_SHARE:
        warn_user(
            f"{n_shared} of the {len(held_out)} rows of {source} are training rows too. A model is "
            "too sure of rows that it was trained on, and so are probabilities that are calibrated "
            f"on them. Give rows as {source} that nothing was trained on, or leave it out.",
            CalibrationWarning,
        )
    shift = None if embedding is None else _shift(backbone, held_out, embedding, seed)
    if shift is not None and shift > HELD_OUT_SHIFT:
        warn_user(
            f"The rows of {source} look like no training rows: on average, their embedding is "
            f"{shift:.1f} standard deviations away. Were they preprocessed like X? A Pipeline "
            f"transforms X alone, unless it is made with transform_input=[{source!r}]. If they "
            "differ on purpose, ignore this warning.",
            CalibrationWarning,
        )


@torch.no_grad()
def _shift(
    backbone: Backbone, held_out: LabelledInputs, embedding: EmbeddingMoments, seed: int
) -> float | None:
    some = held_out.take(random_rows(len(held_out), MAX_LOOKED_AT, seed))
    parts = []
    chunk = kept_chunk(some.inputs, backbone.device)
    for _, batch in unpadded_batches(some.inputs, backbone.device, *chunk):
        h, context = backbone.embed(batch)
        parts.append(look_at(h, context))
    return embedding.shift(torch.cat(parts))
