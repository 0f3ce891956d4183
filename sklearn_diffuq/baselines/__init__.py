"""Baselines for :class:`~sklearn_diffuq.DiffusionCalibratedClassifier`, around the same model.

They share one constructor signature, accept the same data, and do not change the wrapped model: a
comparison changes only the name of the class. All of them average probabilities, never logits.

Two baselines need no class here. For temperature, sigmoid and isotonic calibration, use
scikit-learn's ``CalibratedClassifierCV(FrozenEstimator(fitted), method=...)``. For distillation
into a smaller network without noise, use the unified transition without path loss and labels::

    DiffusionCalibratedClassifier(
        estimator, inference="mean", path_weight=0, label_weight=0, rank=...)
"""

from importlib import import_module

_CLASSES = {
    "DeepEnsembleClassifier": "_ensemble",
    "KEPSVGPClassifier": "_kep_svgp",
    "LabelSmoothingClassifier": "_label_smoothing",
    "LaplaceClassifier": "_laplace",
    "MCDropoutClassifier": "_mc_dropout",
    "SGPAClassifier": "_sgpa",
    "SNGPClassifier": "_sngp",
    "VariationalLastLayerClassifier": "_variational",
}

__all__ = sorted(_CLASSES)


def __getattr__(name):
    """Import a public name on first use (PEP 562): most of them need torch."""
    if name in _CLASSES:
        return getattr(import_module(f"{__name__}.{_CLASSES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
