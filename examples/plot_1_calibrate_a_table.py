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
# Ten measurements of 442 patients. The question is whether their diabetes progresses faster than
# that of the median patient, which the measurements tell only in part: a classifier that trains
# long enough becomes sure of what cannot be known.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_diabetes
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from sklearn.model_selection import StratifiedKFold, train_test_split

from sklearn_diffuq import DiffusionCalibratedClassifier, FTTransformerClassifier
from sklearn_diffuq.metrics import ReliabilityDisplay, expected_calibration_error

X, progression = load_diabetes(return_X_y=True)
y = (progression > np.median(progression)).astype(int)

# %%
# One comparison
# --------------
# The wrapped classifier is trained once per fold. ``FrozenEstimator`` keeps everybody from training
# it again.


def compare(X_train, y_train, X_calibration, y_calibration, X_test, seed):
    wrapped = FTTransformerClassifier(random_state=seed).fit(X_train, y_train)
    frozen = FrozenEstimator(wrapped)
    proba = {"as is": wrapped.predict_proba(X_test)}
    for method in ("temperature", "sigmoid", "isotonic"):
        calibrated = CalibratedClassifierCV(frozen, method=method)
        proba[method] = calibrated.fit(X_calibration, y_calibration).predict_proba(X_test)
    diffusion = DiffusionCalibratedClassifier(frozen, random_state=seed)
    diffusion.fit(X_train, y_train, X_calibration=X_calibration, y_calibration=y_calibration)
    proba["diffusion"] = diffusion.predict_proba(X_test)
    return proba


# %%
# Every row is tested once per repetition
# ---------------------------------------
# Five folds, repeated with several seeds. A quarter of the rows outside the fold calibrates.

N_SEEDS = 3
scores, pooled = [], {}
for seed in range(N_SEEDS):
    fold_proba = []
    order = []
    for rest, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(X, y):
        train, calibration = train_test_split(
            rest, test_size=0.25, random_state=seed, stratify=y[rest]
        )
        fold_proba.append(
            compare(X[train], y[train], X[calibration], y[calibration], X[test], seed)
        )
        order.append(test)
    order = np.concatenate(order)
    for method in fold_proba[0]:
        proba = np.concatenate([fold[method] for fold in fold_proba])
        pooled.setdefault(method, []).append((y[order], proba))
        scores.append(
            {
                "method": method,
                "accuracy": accuracy_score(y[order], proba.argmax(axis=1)),
                "NLL": log_loss(y[order], proba),
                "Brier": brier_score_loss(y[order], proba[:, 1]),
                "ECE": expected_calibration_error(y[order], proba),
            }
        )

# %%
# Mean over the seeds. Lower is better except for accuracy; NLL and Brier score are proper.

print(pd.DataFrame(scores).groupby("method", sort=False).mean().round(4).to_string())

# %%
# Reliability
# -----------
# On the diagonal, a confidence of 0.8 is right in 80% of the cases.

figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
for ax, method in zip(axes, ("as is", "temperature", "diffusion"), strict=True):
    labels, proba = (np.concatenate(parts) for parts in zip(*pooled[method], strict=True))
    ReliabilityDisplay.from_predictions(labels, proba, name=method, ax=ax)
figure.tight_layout()
figure.savefig("calibrate_a_table.png", dpi=150)
