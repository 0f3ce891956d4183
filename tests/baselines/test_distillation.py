"""Distillation without noise is a setting of our own classifier, as the docstring says."""

import re

import pytest
from sklearn.frozen import FrozenEstimator

from sklearn_diffuq import DiffusionCalibratedClassifier, baselines


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_recipe_of_the_docstring(images):
    call = re.search(r"DiffusionCalibratedClassifier\(\s*estimator, (.*), rank", baselines.__doc__)
    settings = dict(re.findall(r"(\w+)=([\w\"]+)", call.group(1)))
    assert settings == {"inference": '"mean"', "path_weight": "0", "label_weight": "0"}
    student = DiffusionCalibratedClassifier(
        FrozenEstimator(images.trained),
        inference="mean",
        path_weight=0,
        label_weight=0,
        rank=4,
        max_epochs=3,
        random_state=0,
    )
    student.fit(images.X, images.y)
    assert student.n_parameters_ < student.n_block_parameters_
    assert student.score(images.X_test, images.y_test) > 0.8
    last = student.history_[-1]
    assert last["train_loss"] == pytest.approx(last["distillation"])
