"""On which side a model can be padded: its answer for a row must not change with the padding."""

import numpy as np
import torch

from sklearn_diffuq._backbones.precision import HALF, is_quantised
from sklearn_diffuq._inputs.batching import inference_batches
from sklearn_diffuq.exceptions import BackboneError

TOLERANCE = 1e-3  # of the largest logit; padding changes the last bits of any model
LOW_PRECISION_TOLERANCE = 5e-2


def needs_left_padding(backbone, inputs):
    """Tell whether texts have to be padded on the left; on the right is preferred.

    Parameters
    ----------
    backbone : Backbone
        Probed.
    inputs : EncodedInputs
        Padded on the right. The shortest and the longest row that get padding are tried.

    Raises
    ------
    BackboneError
        If the model answers a row in another way than without padding, whatever the side.
    """
    if inputs.lengths is None:
        return False
    lengths = inputs.lengths
    padded = np.arange(len(lengths))
    if inputs.max_length is not None:
        padded = padded[lengths < inputs.max_length]
    if len(padded) == 0:
        return False
    rows = {int(padded[lengths[padded].argmin()]), int(padded[lengths[padded].argmax()])}
    with backbone.frozen(), torch.no_grad():
        for left in (False, True):
            sided = inputs.padded_left() if left else inputs
            if all(_is_unchanged(backbone, sided.take([row])) for row in rows):
                return left
    raise BackboneError(
        f"{type(backbone.module).__name__} answers a text in one way alone and in another with "
        "padding, on the right as on the left: its answers would depend on the other texts of a "
        "batch. Let it use the `attention_mask`: average over real tokens only, or read the last "
        "token at `attention_mask.sum(1) - 1` instead of -1."
    )


def _is_unchanged(backbone, row):
    """Tell whether one row has the same answer with and without its padding."""
    _, _, length = next(inference_batches(row, 1))
    alone = _answer(backbone, row.batch([0], device=backbone.device))
    padded = _answer(backbone, row.batch([0], length, device=backbone.device))
    model = backbone.module
    is_exact = torch.get_float32_matmul_precision() == "highest" and not (
        any(p.dtype in HALF for p in model.parameters()) or any(map(is_quantised, model.modules()))
    )
    tolerance = TOLERANCE if is_exact else LOW_PRECISION_TOLERANCE
    return torch.allclose(
        alone, padded, rtol=0, atol=tolerance * alone.abs().max().item(), equal_nan=True
    )


def _answer(backbone, batch):
    if backbone.n_outputs is not None:
        return backbone.logits(batch)
    h, context = backbone.embed(batch)
    return backbone.features(backbone.advance(h, context), context)
