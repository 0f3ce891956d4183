"""Calibrated scikit-learn classifiers from fine-tuned transformers.

A deep classifier is read as a path of hidden states. The package keeps that path, learns how
uncertain each of its steps is, and averages the predictions over it. The folders follow the data::

      the model                              the diffusion

    X, y
     |
     v
    1. _inputs       rows -> batches
     |
     v
    2. _backbones    a frozen torch model:
     |               embed | blocks | readout
     v                     |
    3. _wrapped            |   h_0, h_1 = f_1(h_0), .., h_L
       that model as a     v
       scikit-learn        4. _path          every step is a Gaussian N(F_s(h), Sigma_s(h))
       classifier           |
     |                      v
     v                     5. _propagation   paths, or their linearised law, to logits
    baselines               |
                            v
                           6. _calibration   held-out labels -> noise and temperature
                            |
                            v
                           7. _transition    one network for all steps, trained to follow the path

    _fit_path.py puts a fit together, _fitted_path.py is its result, _classifier.py the estimator,
    _predictions.py its answers, 8. _persistence its files. _training is the loop of every network.

Beside them stand :mod:`sklearn_diffuq.metrics` (how good are the probabilities?),
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


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
