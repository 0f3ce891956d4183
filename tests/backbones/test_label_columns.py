import re

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.ft_transformer import FTTransformer
from sklearn_diffuq._backbones.label_columns import fit_linear_readout, match_columns
from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs

GENERIC = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
NAMED = {0: "neg", 1: "neutral", 2: "pos"}


@pytest.mark.parametrize(
    ("labels", "n_outputs", "names", "expected"),
    [
        ([0, 1, 2], 3, None, [0, 1, 2]),
        ([0, 2], 3, None, [0, 2]),  # a class that the data lack
        ([0.0, 1.0, 2.0], 3, None, [0, 1, 2]),
        ([False, True], 2, None, [0, 1]),
        ([False, True], 1, None, [0, 1]),  # one logit is two classes
        (["neg", "neutral", "pos"], 3, NAMED, [0, 1, 2]),
        (["neg", "pos"], 3, NAMED, [0, 2]),
        (["a", "b", "c"], 3, {0: "c", 1: "a", 2: "b"}, [1, 2, 0]),  # sorted labels, model's order
        ([3, 5], 2, {0: "5", 1: "3"}, [1, 0]),
        ([0, 1, 2], 3, NAMED, [0, 1, 2]),  # numbers of named classes
        (["a", "b", "c"], 3, GENERIC, [0, 1, 2]),
        (["a", "b", "c"], 3, None, [0, 1, 2]),
        ([-1, 1], 2, None, [0, 1]),
        ([1, 2, 3], 3, GENERIC, [0, 1, 2]),
        (["good", "bad", "so"], 3, NAMED, None),
        (["neg", "other"], 3, NAMED, None),
        ([1, 2, 3], 3, NAMED, None),
        (["a", "b"], 3, None, None),
        ([0, 1, 2, 3], 3, None, None),
        ([0.5, 1.0], 3, None, None),
        ([0, 1], None, None, None),
        ([1.0, 2.0, 3.0, 4.0], 5, {i: str(i + 1) for i in range(5)}, [0, 1, 2, 3]),
        ([0.0, 1.0], 3, {0: "-1", 1: "0", 2: "1"}, [1, 2]),
        ([1, 2], 2, {0: "2.0", 1: "1.0"}, [1, 0]),
        ([1.5, 2.0], 2, {0: "2", 1: "1.5"}, [1, 0]),
        ([False, True], 2, {0: "True", 1: "False"}, [1, 0]),
        (["LABEL_0", "LABEL_10", "LABEL_2"], 11, {i: f"LABEL_{i}" for i in range(11)}, [0, 10, 2]),
        (["good", "GOOD"], 2, {0: "good", 1: "bad"}, None),
        (["good", "bad"], 3, {0: "Good", 1: "GOOD", 2: "bad"}, None),  # which one?
    ],
)
def test_columns(labels, n_outputs, names, expected):
    assert match_columns(np.array(labels), n_outputs, names).columns == expected


@pytest.mark.parametrize(
    ("labels", "n_outputs", "names", "expected", "doubt"),
    [
        (["Negative", "positive"], 2, {0: "POSITIVE", 1: "NEGATIVE"}, [1, 0], "'NEGATIVE'"),
        ([False, True], 2, {0: "true", 1: "false"}, [1, 0], "True as 'true'"),
        (range(10), 1000, None, list(range(10)), "1000 outputs.*only 10 labels.*left out"),
        ([0, 1], 3, NAMED, [0, 1], "3 outputs"),
        ([1.0, 2.0], 5, None, [1, 2], "5 outputs"),
        ([str(i) for i in range(11)], 11, None, list(range(11)), "'0', '1', '10', '2'"),
        ([f"c{i}" for i in range(12)], 12, GENERIC, list(range(12)), "'c0', 'c1', 'c10'"),
    ],
)
def test_a_match_in_doubt_says_why(labels, n_outputs, names, expected, doubt):
    match = match_columns(np.unique(labels), n_outputs, names)
    assert match.columns == expected
    assert re.search(doubt, match.doubt)


@pytest.mark.parametrize(
    ("labels", "n_outputs", "names"),
    [
        ([2, 3, 7], 10, None),  # no one counts like that: the numbers are the model's
        (["neg", "pos"], 3, NAMED),
        (range(12), 12, None),
        ([f"{i:02d}" for i in range(12)], 12, None),
        (["1", "2", "b"], 3, None),
        ([-1, 1], 2, None),
        ([0, 1], 1, None),
    ],
)
def test_a_plain_match_raises_no_doubt(labels, n_outputs, names):
    match = match_columns(np.unique(labels), n_outputs, names)
    assert match.columns is not None
    assert match.doubt is None


def backbone_and_batch(n_outputs):
    torch.manual_seed(0)
    module = FTTransformer(4, [], n_outputs, width=16)
    batch = {"x_num": torch.randn(5, 4)}
    return Backbone(module).probe(batch), module.eval(), batch


def test_aligned_logits_are_the_chosen_columns():
    backbone, module, batch = backbone_and_batch(3)
    native = module(**batch)
    assert torch.equal(backbone.logits(batch), native)
    backbone.columns = [2, 0]
    assert backbone.n_outputs == 2
    assert torch.equal(backbone.logits(batch), native[:, [2, 0]])
    backbone.probe(batch)  # the check on the native logits still holds, and the choice stays
    h, context = backbone.embed(batch)
    for k in range(backbone.n_blocks):
        h = backbone.block(k, h, context)
    assert torch.equal(backbone.readout(h, context), native[:, [2, 0]])


def test_one_logit_counts_as_two():
    backbone, module, batch = backbone_and_batch(1)
    backbone.columns = [0, 1]
    proba = backbone.logits(batch).softmax(1)[:, 1:]
    torch.testing.assert_close(proba, torch.sigmoid(module(**batch)))
    assert backbone.n_outputs == 2


@pytest.mark.parametrize("n_classes", [2, 3])
def test_linear_readout_is_the_regression_on_scaled_features(n_classes):
    rng = np.random.default_rng(0)
    target = rng.integers(0, n_classes, size=200)
    features = rng.normal(size=(200, 5)) * [1, 10, 0.1, 1, 1] + target[:, None] + 3
    weight = rng.random(200)
    weight /= weight.mean()  # the penalty counts against unit weights
    training = LabelledInputs.of(None, target, weight)
    layer = fit_linear_readout(features, training, n_classes)
    scaler = StandardScaler().fit(features, sample_weight=weight)
    expected = make_pipeline(scaler, LogisticRegression(C=0.1, max_iter=1000))
    expected.fit(
        features,
        target,
        standardscaler__sample_weight=weight,
        logisticregression__sample_weight=weight,
    )
    logits = layer(torch.as_tensor(features, dtype=torch.float32))
    np.testing.assert_allclose(
        logits.softmax(1).detach(), expected.predict_proba(features), atol=1e-4
    )
