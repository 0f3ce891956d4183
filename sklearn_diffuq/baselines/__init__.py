"""Rivals of :class:`~sklearn_diffuq.DiffusionCalibratedClassifier`, around the same wrapped model.

All have one constructor shape, take the same data, and leave the wrapped model as it is, so that
a comparison changes one name only. All of them average probabilities, never logits.

Two rivals need no class of their own. Temperature, sigmoid and isotonic calibration are
scikit-learn's ``CalibratedClassifierCV(FrozenEstimator(fitted), method=...)``. Distillation into a
smaller network, without noise, is the unified transition without its path loss and its labels::

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
