"""
Calibrate a tabular classifier
==============================

A transformer for tabular data is trained and frozen. Its uncalibrated probabilities are compared
with three calibration methods of scikit-learn's
:class:`~sklearn.calibration.CalibratedClassifierCV` and with
:class:`~sklearn_diffuq.DiffusionCalibratedClassifier`, all calibrated on the same samples.
"""

# %%
# The data
# --------
# The data set has ten measurements of 442 patients. The task is to predict whether a patient's
# diabetes progresses faster than the median. The measurements determine this only in part, so a
# network that is trained for long becomes over-confident.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_diabetes
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from sklearn.model_selection import train_test_split

from sklearn_diffuq import DiffusionCalibratedClassifier, FTTransformerClassifier
from sklearn_diffuq.metrics import ReliabilityDisplay, expected_calibration_error

X, progression = load_diabetes(return_X_y=True)
y = (progression > np.median(progression)).astype(int)

# %%
# A single split
# --------------
# The wrapped classifier is trained once on all training samples, for a fixed number of epochs.
# ``FrozenEstimator`` prevents retraining.


def compare(train, calibration, X_test, seed):
    wrapped = FTTransformerClassifier(max_epochs=60, validation_fraction=0.0, random_state=seed)
    frozen = FrozenEstimator(wrapped.fit(*train))
    proba = {"uncalibrated": frozen.predict_proba(X_test)}
    for method in ("temperature", "sigmoid", "isotonic"):
        calibrated = CalibratedClassifierCV(frozen, method=method).fit(*calibration)
        proba[method] = calibrated.predict_proba(X_test)
    X_calibration, y_calibration = calibration
    diffusion = DiffusionCalibratedClassifier(frozen, random_state=seed)
    diffusion.fit(*train, X_calibration=X_calibration, y_calibration=y_calibration)
    proba["diffusion"] = diffusion.predict_proba(X_test)
    return proba


# %%
# Several random splits
# ---------------------
# Half of the samples are used for training, a fifth for calibration, and the rest for testing.

scores, tested = [], {}
for seed in range(5):
    X_train, X_rest, y_train, y_rest = train_test_split(
        X, y, train_size=0.5, random_state=seed, stratify=y
    )
    X_calibration, X_test, y_calibration, y_test = train_test_split(
        X_rest, y_rest, train_size=0.4, random_state=seed, stratify=y_rest
    )
    compared = compare((X_train, y_train), (X_calibration, y_calibration), X_test, seed)
    for method, proba in compared.items():
        tested.setdefault(method, []).append((y_test, proba))
        scores.append(
            {
                "method": method,
                "accuracy": accuracy_score(y_test, proba.argmax(axis=1)),
                "NLL": log_loss(y_test, proba),
                "Brier": brier_score_loss(y_test, proba[:, 1]),
                "ECE": expected_calibration_error(y_test, proba),
            }
        )

# %%
# The table shows means over the splits. Lower is better except for accuracy. The log loss (NLL, in
# nats) and the Brier score are strictly proper scoring rules: in expectation, only the true
# probabilities minimise them. ECE is not.

print(pd.DataFrame(scores).groupby("method", sort=False).mean().round(4).to_string())

# %%
# Reliability
# -----------
# On the diagonal, predictions with a confidence of 0.8 are correct in 80% of the cases.

figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
for ax, method in zip(axes, ("uncalibrated", "temperature", "diffusion"), strict=True):
    labels, proba = (np.concatenate(parts) for parts in zip(*tested[method], strict=True))
    ReliabilityDisplay.from_predictions(labels, proba, name=method, ax=ax)
figure.tight_layout()
figure.savefig("calibrate_a_table.png", dpi=150)
