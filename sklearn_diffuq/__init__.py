"""Calibrated scikit-learn classifiers from fine-tuned transformers.

A deep classifier is read as a path of hidden states. The package keeps that path, learns how
uncertain each of its steps is, and averages the predictions over it. The files follow the data::

        X, y
         |
    1. backbones/       the wrapped model, frozen: embed | blocks | readout
         |   h_0, h_1 = f_1(h_0), ..., h_L
    2. _path.py         every step becomes a Gaussian N(F_s(h), Sigma_s(h));
       _covariance.py   Sigma_s grows with the distance from the training states
       _attention.py    or with that which the frozen attention sees
         |
    3. _transition.py   one small network stands in for all the steps
         |
    4. _training.py     it is trained to follow the path on its own states
         |
    5. _propagation.py  the Gaussians are pushed to the readout: paths,
       _moments.py      or their first-order law;
       _calibration.py  held-out rows, and perturbed copies, set noise and temperature
         |
    6. _classifier.py   DiffusionCalibratedClassifier: fit, predict_proba, predict_uncertainty

Beside the path stand :mod:`sklearn_diffuq.metrics` (how good are the probabilities?),
:mod:`sklearn_diffuq.datasets` (real and corrupted data to ask that question on) and
:mod:`sklearn_diffuq.baselines` (other methods to ask it of).

Importing the package loads none of the deep-learning libraries; the first use of a name does.
"""

from importlib import import_module

__version__ = "0.1.0"

_NAMES = {
    "DiffusionCalibratedClassifier": "sklearn_diffuq._classifier",
    "FTTransformerClassifier": "sklearn_diffuq._wrapped.ft_transformer_classifier",
    "TransformerClassifier": "sklearn_diffuq._wrapped.transformer_classifier",
    "diffusion_step_curve": "sklearn_diffuq._step_curve",
}
_SUBPACKAGES = ("baselines", "datasets", "exceptions", "metrics")

__all__ = [
    "DiffusionCalibratedClassifier",
    "FTTransformerClassifier",
    "TransformerClassifier",
    "baselines",
    "datasets",
    "diffusion_step_curve",
    "exceptions",
    "metrics",
]


def __getattr__(name):
    """Import a public name on first use (PEP 562)."""
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
