import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator
from tiny_baselines import make


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_cross_entropy_with_softened_labels(smoothing, images):
    clf = make("LabelSmoothingClassifier", FrozenEstimator(images.trained), smoothing=smoothing)
    held_out = dict(X_calibration=images.X_test, y_calibration=images.y_test)
    clf.fit(images.X, images.y, **held_out)
    onehot = images.y_test[:, None] == clf.classes_
    target = (1 - smoothing) * onehot + smoothing / 3
    loss = -(target * np.log(clf.predict_proba(images.X_test))).sum(1).mean()
    assert min(row["valid_loss"] for row in clf.history_) == pytest.approx(loss, rel=1e-5)


def test_smoothing_lowers_the_confidence(images):
    confidence = [
        make("LabelSmoothingClassifier", FrozenEstimator(images.trained), smoothing=smoothing)
        .fit(images.X, images.y)
        .predict_proba(images.X_test)
        .max(1)
        .mean()
        for smoothing in (0.0, 0.4)
    ]
    assert confidence[1] < confidence[0] - 0.05
