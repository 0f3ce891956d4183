"""
Calibrate a classifier for a table
==================================

A transformer for tables is trained, frozen, and calibrated on held-out rows in five ways: not at
all, by three methods of scikit-learn's :class:`~sklearn.calibration.CalibratedClassifierCV`, and by
:class:`~sklearn_diffuq.DiffusionCalibratedClassifier`. All see the same rows.
"""

# %%
# The data
# --------
# Ten measurements of 442 patients. Does their diabetes progress faster than that of the median
# patient? The measurements tell it only in part, and a network that trains long enough becomes sure
# of what cannot be known.

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
# One comparison
# --------------
# The wrapped classifier is trained once, for a fixed number of epochs on all training rows.
# ``FrozenEstimator`` keeps everybody from training it again.


def compare(train, calibration, X_test, seed):
    wrapped = FTTransformerClassifier(max_epochs=60, validation_fraction=0.0, random_state=seed)
    frozen = FrozenEstimator(wrapped.fit(*train))
    proba = {"as is": frozen.predict_proba(X_test)}
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
# Half of the rows train, a fifth calibrates, the rest tests.

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
# Means over the splits. Lower is better except for accuracy. The log loss (NLL, in nats) and the
# Brier score are proper: only the true probabilities minimise them. ECE is not.

print(pd.DataFrame(scores).groupby("method", sort=False).mean().round(4).to_string())

# %%
# Reliability
# -----------
# On the diagonal, a prediction with confidence 0.8 is right in 80% of the cases.

figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
for ax, method in zip(axes, ("as is", "temperature", "diffusion"), strict=True):
    labels, proba = (np.concatenate(parts) for parts in zip(*tested[method], strict=True))
    ReliabilityDisplay.from_predictions(labels, proba, name=method, ax=ax)
figure.tight_layout()
figure.savefig("calibrate_a_table.png", dpi=150)
