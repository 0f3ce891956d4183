"""The last linear layer of a wrapped model, and the features that it reads."""

import warnings

import numpy as np
import torch

from sklearn_diffuq._backbones.backbone import stream
from sklearn_diffuq._wrapped.wrap import choose_readout
from sklearn_diffuq.exceptions import ReadoutWarning


def linear_layers(backbone):
    """Return name -> linear layer; the names of a readout of ours start with "readout"."""
    found = dict(backbone.module.named_modules(prefix="module"))
    if backbone.custom_readout is not None:
        found |= dict(backbone.custom_readout.named_modules(prefix="readout"))
    return {name: m for name, m in found.items() if isinstance(m, torch.nn.Linear)}


def align(backbone, logits):
    """Return the logits of the classes among native logits, shape (n, n_classes)."""
    return backbone._align(logits) if hasattr(backbone, "_align") else logits


def find_last_layer(backbone, batch):
    """Return the name of the linear layer whose outputs are the logits, or None."""
    calls, handles = [], []
    for name, module in linear_layers(backbone).items():

        def record(module, args, output, name=name):
            calls.append((name, output))

        handles.append(module.register_forward_hook(record))
    try:
        with backbone.frozen(), torch.no_grad():
            logits = backbone.logits(batch)
    finally:
        for handle in handles:
            handle.remove()
    columns = getattr(backbone, "columns", None)
    n_native = logits.shape[1] if columns is None else max(columns) + 1
    for name, output in reversed(calls):
        # a single native logit stands for two classes
        fits = output.ndim == 2 and (output.shape[1] >= n_native or output.shape[1] == 1)
        if fits and torch.equal(align(backbone, output), logits):
            return name
    return None


def with_last_layer(wrapped, training):
    """Return a wrapped model whose logits come from a linear layer, and the name of that layer.

    A model without one gets a logistic regression on its pooled features.
    """
    rows = np.arange(min(len(training), 2))
    device = next(wrapped.backbone_.module.parameters()).device
    name = find_last_layer(wrapped.backbone_, training.inputs.batch(rows, device=device))
    if name is None:
        warnings.warn(
            f"{type(wrapped.backbone_.module).__name__} does not end in one linear layer on "
            "features of shape (n, d): a logistic regression on its token mean is fitted instead.",
            ReadoutWarning,
            stacklevel=6,
        )
        return choose_readout(wrapped, "refit", training), "readout"
    return wrapped, name


def aligned_weights(backbone, name):
    """Return weight (n_classes, d) and bias (n_classes,) of the last layer, in float64."""
    layer = linear_layers(backbone)[name]
    weight = layer.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    return align(backbone, weight.T).T, align(backbone, bias[None])[0]


def last_features(backbone, name):
    """Return a function from a batch to the inputs of the last layer, float64 of shape (n, d)."""
    layer = linear_layers(backbone)[name]

    def features(batch):
        seen = []
        handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            backbone.logits(batch)
        finally:
            handle.remove()
        return seen[-1].double()

    return features


def training_features(owner, training):
    """Make the wrapped model of a rival end in a linear layer; return what that layer reads.

    Sets `wrapped_` and `_layer`, the name of the layer.

    Returns
    -------
    features : ndarray of shape (n, d), float64
    """
    owner.wrapped_, owner._layer = with_last_layer(owner.wrapped_, training)
    return features_of(owner, training.inputs)


def features_of(owner, inputs, head=None):
    """Return the inputs of the last layer, or what a function on the CPU makes of them.

    The function gets float64 features (m, d). What it returns is rounded to single precision,
    since the last bits of double precision depend on a row's place in the batch.
    """
    backbone = owner.wrapped_.backbone_
    features = last_features(backbone, owner._layer)

    def of_batch(batch):
        return features(batch) if head is None else head(features(batch).cpu()).float()

    return stream(backbone, inputs, of_batch, owner.wrapped_._n_tokens)
