"""The scikit-learn contract, on one of the baselines: it concerns what all of them share."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks
from tiny_baselines import make

from sklearn_diffuq import FTTransformerClassifier

TABLE = FTTransformerClassifier(n_blocks=2, width=8, n_heads=2, max_epochs=6, lr=1e-2)
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "training draws mini-batches: a row of weight two and a row given twice meet different "
        "batches"
    )
}


@parametrize_with_checks(
    [make("VariationalLastLayerClassifier", TABLE, max_epochs=2)],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
    xfail_strict=True,
)
@pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning")
def test_common_checks(estimator, check):
    check(estimator)
