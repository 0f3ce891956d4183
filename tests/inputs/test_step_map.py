import numpy as np
import torch
from sklearn.preprocessing import QuantileTransformer

from sklearn_diffuq._inputs.step_map import StepMap
from sklearn_diffuq._state import State


def test_it_maps_as_the_quantile_transformer_that_was_saved():
    rng = np.random.default_rng(0)
    X = np.c_[rng.normal(size=60).round(1), rng.integers(0, 3, 60), np.ones(60), rng.random(60)]
    old = QuantileTransformer(n_quantiles=60, output_distribution="normal").fit(X)
    tensors = {
        "quantiles": torch.from_numpy(old.quantiles_),
        "references": torch.from_numpy(old.references_),
    }
    new = np.concatenate([X, X.astype(np.float32), 3 * rng.normal(size=(50, 4))])
    new[3, 1] = np.nan
    steps = StepMap.from_state(State({}, tensors))
    np.testing.assert_array_equal(steps.transform(new), np.clip(old.transform(new), -3, 3))
    again = StepMap.from_state(steps.to_state())
    np.testing.assert_array_equal(again.transform(new), steps.transform(new))
    assert steps.beyond(new) is None
    assert not steps.constant.any()
