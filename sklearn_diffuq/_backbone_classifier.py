"""What the two wrapped classifiers share: checking labels, training, and prediction."""

import copy

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d
from torch.nn import functional as F

from sklearn_diffuq._inputs import inference_batches, training_batches
from sklearn_diffuq._readout import AlignedBackbone, fit_linear_readout
from sklearn_diffuq._training import train_module


def resolve_device(device):
    """Return the torch device that the parameter `device` stands for."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}, but no GPU was found. Use 'cpu' or 'auto'.")
    return device


def check_labels(owner, y, sample_weight):
    """Return the sorted classes, class indices, weights, and the rows with a positive weight."""
    if y is None:
        raise ValueError(
            f"{type(owner).__name__} requires y to be passed, but the target y is None."
        )
    y = column_or_1d(y, warn=True)
    assert_all_finite(y, input_name="y")
    check_classification_targets(y)
    weight = _check_sample_weight(
        sample_weight, np.empty((len(y), 0)), dtype=np.float64, ensure_non_negative=True
    )
    kept = np.flatnonzero(weight)
    if len(kept) == 0:
        raise ValueError("Sample weights are all zero: at least one must be positive.")
    classes, target = np.unique(y[kept], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"{type(owner).__name__} needs rows of at least two classes, but all {len(kept)} "
            f"sample(s) with a positive weight have one class, {classes[0]!r}."
        )
    return classes, target, weight[kept] / weight[kept].mean(), kept


def held_out_rows(target, fraction, rng):
    """Return about `fraction` of the rows, from every class; the last row of a class never."""
    if fraction == 0:
        return np.empty(0, dtype=np.intp)
    order = rng.permutation(len(target))
    order = order[np.argsort(target[order], kind="stable")]
    step = round(1 / fraction)
    held = order[step // 2 :: step]
    return held[np.bincount(target)[target[held]] > 1]


def stream(backbone, inputs, function, n_tokens):
    """Return ``function(batch)`` of all rows as one float64 array.

    The chunks are those of `inference_batches`: a row's value depends on the row alone.
    """
    device = next(backbone.module.parameters()).device
    limits = {"max_rows": 64} if device.type == "cpu" else {"max_rows": 512, "max_tokens": 2**16}
    values = None
    with backbone.frozen(), torch.no_grad():
        for rows, padded, length in inference_batches(inputs, **limits, n_tokens=n_tokens):
            part = function(inputs.batch(padded, length, device))[: len(rows)]
            part = part.double().cpu().numpy()
            if values is None:
                values = np.empty((len(inputs), *part.shape[1:]))
            values[rows] = part
    return values


def train_classifier(
    module, logits, inputs, target, weight, held, *, batch_size, device, n_tokens=None, **options
):
    """Minimise the weighted cross-entropy of ``logits(batch)``; score epochs on the rows `held`.

    Returns
    -------
    history : list of dict
        What `train_module` recorded.
    """
    train = np.setdiff1d(np.arange(len(target)), held)
    fitted, scored = inputs.take(train), inputs.take(held)
    y = torch.as_tensor(target, device=device)
    w = torch.as_tensor(weight, dtype=torch.float32, device=device)

    def cross_entropy(part, rows, batch):
        losses = F.cross_entropy(logits(batch).float(), y[part[rows]], reduction="none")
        return losses * w[part[rows]]

    def batch_loss(rows, epoch, generator):
        return {"loss": cross_entropy(train, rows, fitted.batch(rows, device=device)).mean()}

    def validate(epoch):
        total = 0.0
        for rows, _, length in inference_batches(scored, 256, 2**14, n_tokens):
            batch = scored.batch(rows, length, device)
            total += cross_entropy(held, rows, batch).sum().item()
        return total / weight[held].sum()

    return train_module(
        module,
        batch_loss,
        lambda epoch, rng: training_batches(fitted, batch_size, rng),
        validate=validate if len(held) else None,
        device=device,
        **options,
    )


class BackboneClassifier(ClassifierMixin, BaseEstimator):
    """Prediction from the logits of ``backbone_``; `encode` is the subclass's."""

    def _logits(self, X):
        check_is_fitted(self)
        return stream(self.backbone_, self.encode(X), self.backbone_.logits, self._n_tokens)

    @property
    def n_outputs(self):
        """Number of logits, which is the number of classes."""
        check_is_fitted(self)
        return len(self.classes_)

    def refit_readout(self, inputs, target, weight):
        """Replace the readout by a logistic regression on the pooled features.

        Parameters
        ----------
        inputs : EncodedInputs of length n
            Rows to fit on.
        target : ndarray of shape (n,)
            Class indices.
        weight : ndarray of shape (n,)
            Sample weights.
        """
        backbone = self.backbone_

        def features(batch):
            h, context = backbone.embed(batch)
            for k in range(backbone.n_blocks):
                h = backbone.block(k, h, context)
            return backbone.features(h, context)

        values = stream(backbone, inputs, features, self._n_tokens)
        device = next(backbone.module.parameters()).device
        readout = fit_linear_readout(values, target, weight, target.max() + 1).to(device)
        self.backbone_ = AlignedBackbone(backbone.module, blocks=backbone.path, readout=readout)
        rows = np.repeat(np.arange(min(len(inputs), 2)), 2)[:2]
        self.backbone_.probe(inputs.batch(rows, device=device))

    def decision_function(self, X):
        """Return the logits.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        scores : ndarray of shape (n,) for two classes, else (n, n_classes)
            Log-odds of the second class, or logits, in float64.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X):
        """Return class probabilities.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        proba : ndarray of shape (n, n_classes)
            Float64 rows that sum to one; columns follow `classes_`.
        """
        proba = softmax(self._logits(X), axis=1)
        return proba / proba.sum(axis=1, keepdims=True)

    def predict_log_proba(self, X):
        """Return the logarithm of class probabilities.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        log_proba : ndarray of shape (n, n_classes)
            Computed from the logits, so that small probabilities stay finite.
        """
        return log_softmax(self._logits(X), axis=1)

    def predict(self, X):
        """Return the most probable class of each row.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        y : ndarray of shape (n,)
            Entries of `classes_`.
        """
        winners = self._logits(X).argmax(axis=1)
        return self.classes_[winners]

    def __getstate__(self):
        """Return the state with every model on the CPU, so that it loads without a GPU."""
        state = super().__getstate__()
        models = {k: v for k, v in state.items() if k in ("model", "module_", "backbone_")}
        if any(p.is_cuda for m in _modules_of(models) for p in m.parameters()):
            models = copy.deepcopy(models)  # together: what is shared stays shared
            for module in _modules_of(models):
                module.cpu()
            state |= models
        return state

    def __setstate__(self, state):
        """Restore the state; move the model to the GPU where there is one and it is asked for."""
        super().__setstate__(state)
        if hasattr(self, "backbone_") and torch.cuda.is_available():
            for module in _modules_of({"backbone_": self.backbone_}):
                module.to(resolve_device(self.device))


def _modules_of(models):
    """Return the torch modules among the values, and in backbones."""
    found = [m for m in models.values() if isinstance(m, torch.nn.Module)]
    backbone = models.get("backbone_")
    if backbone is not None:
        found += [m for m in (backbone.module, backbone.custom_readout) if m is not None]
    return found
