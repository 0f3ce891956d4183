"""What the two wrapped classifiers share: prediction from logits, and a refitted readout."""

import copy

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.classes import fit_linear_readout


def resolve_device(device):
    """Return the torch device that the parameter `device` stands for."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}, but no GPU was found. Use 'cpu' or 'auto'.")
    return device


class BackboneClassifier(ClassifierMixin, BaseEstimator):
    """Prediction from the logits of ``backbone_``; `encode` is the subclass's."""

    def _logits(self, X):
        check_is_fitted(self)
        return self.backbone_.map_rows(self.backbone_.logits, self.encode(X))

    @property
    def n_outputs(self):
        """Number of logits, which is the number of classes."""
        check_is_fitted(self)
        return len(self.classes_)

    def refit_readout(self, training):
        """Replace the readout by a logistic regression on the pooled features.

        Parameters
        ----------
        training : LabelledInputs
        """
        backbone = self.backbone_

        def features(batch):
            h, context = backbone.embed(batch)
            return backbone.features(backbone.advance(h, context), context)

        values = backbone.map_rows(features, training.inputs)
        readout = fit_linear_readout(values, training, len(self.classes_))
        self.backbone_ = Backbone(
            backbone.module, blocks=backbone.path, readout=readout.to(backbone.device)
        )
        rows = np.repeat(np.arange(min(len(training), 2)), 2)[:2]
        self.backbone_.probe(training.inputs.batch(rows, device=backbone.device))

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
