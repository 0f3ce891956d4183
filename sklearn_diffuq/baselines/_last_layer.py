"""The last linear layer of a wrapped model, and the features that it reads."""

from dataclasses import dataclass

import numpy as np
import torch

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._warnings import warn_user
from sklearn_diffuq._wrapped.wrap import choose_readout
from sklearn_diffuq.exceptions import ReadoutWarning


@dataclass(frozen=True, eq=False)
class LastLayer:
    """The linear layer of a backbone whose outputs are the logits.

    Attributes
    ----------
    backbone : Backbone
        The model.
    name : str
        Name of the layer in `named_linear_layers`.
    """

    backbone: Backbone
    name: str

    @property
    def layer(self):
        """The `torch.nn.Linear` itself."""
        return named_linear_layers(self.backbone)[self.name]

    def weights(self):
        """Return weight (n_classes, d) and bias (n_classes,), one row per class, in float64."""
        weight, bias = self.layer.weight.detach().double(), self.layer.bias
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
        return self.backbone.align(weight.T).T, self.backbone.align(bias[None])[0]

    def features(self, batch):
        """Return what the layer reads for a batch, float64 of shape (n, d)."""
        seen = []
        handle = self.layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            self.backbone.logits(batch)
        finally:
            handle.remove()
        return seen[-1].double()

    def all_features(self, inputs):
        """Return what the layer reads for encoded inputs of length n, float64 of shape (n, d)."""
        return self.backbone.map_rows(self.features, inputs)

    def predict(self, head, inputs):
        """Return what another head makes of the features of encoded inputs.

        Parameters
        ----------
        head : callable
            Maps float64 features (m, d) on the CPU to a tensor of length m.
        inputs : EncodedInputs of length n

        Returns
        -------
        values : ndarray of length n, float64
            Rounded to single precision: the last bits of double precision depend on a row's place
            in the batch.
        """
        return self.backbone.map_rows(
            lambda batch: head(self.features(batch).cpu()).float(), inputs
        )


def named_linear_layers(backbone):
    """Return name -> linear layer; names in a separate readout start with "readout"."""
    found = dict(backbone.module.named_modules(prefix="module"))
    if backbone.custom_readout is not None:
        found |= dict(backbone.custom_readout.named_modules(prefix="readout"))
    return {name: m for name, m in found.items() if isinstance(m, torch.nn.Linear)}


def find_last_layer(backbone, batch):
    """Return the `LastLayer` of a backbone, found on a batch; None if there is none."""
    calls, handles = [], []
    for name, module in named_linear_layers(backbone).items():

        def record(module, args, output, name=name):
            calls.append((name, output))

        handles.append(module.register_forward_hook(record))
    try:
        with backbone.frozen(), torch.no_grad():
            logits = backbone.logits(batch)
    finally:
        for handle in handles:
            handle.remove()
    n_native = logits.shape[1] if backbone.columns is None else max(backbone.columns) + 1
    for name, output in reversed(calls):
        # a single native logit stands for two classes
        fits = output.ndim == 2 and (output.shape[1] >= n_native or output.shape[1] == 1)
        if fits and torch.equal(backbone.align(output), logits):
            return LastLayer(backbone, name)
    return None


def with_last_layer(wrapped, training):
    """Make sure that the logits of a wrapped model come from a linear layer.

    Parameters
    ----------
    wrapped : BackboneClassifier
        It is not changed.
    training : LabelledInputs

    Returns
    -------
    wrapped : BackboneClassifier
        The given one; or a copy with a logistic regression on its pooled features, if the given one
        does not end in a linear layer.
    last_layer : LastLayer
        Of the returned classifier.
    """
    backbone = wrapped.backbone_
    rows = np.arange(min(len(training), 2))
    found = find_last_layer(backbone, training.inputs.batch(rows, device=backbone.device))
    if found is not None:
        return wrapped, found
    warn_user(
        f"{type(backbone.module).__name__} does not end in one linear layer on features of shape "
        "(n, d): a logistic regression on its token mean is fitted instead.",
        ReadoutWarning,
    )
    wrapped = choose_readout(wrapped, "refit", training)
    return wrapped, LastLayer(wrapped.backbone_, "readout")
