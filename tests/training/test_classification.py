import copy

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._inputs.table_encoder import encode_table
from sklearn_diffuq._training.classification import cross_entropy, fit_classifier
from sklearn_diffuq._training.loop_options import LoopOptions

WEIGHT = [2.0, 1, 1, 3, 1, 1]
REPEATED = [0, 0, 1, 2, 3, 3, 3, 4, 5]  # each row as often as its weight says


@pytest.fixture
def labelled():
    X = np.random.default_rng(0).normal(size=(6, 3))
    return LabelledInputs.of(encode_table(X), np.array([0, 1, 0, 1, 0, 1]), np.array(WEIGHT))


def unweighted(labelled, rows):
    return LabelledInputs.of(labelled.inputs.take(rows), labelled.y[rows], np.ones(len(rows)))


def fit(training, held_out=None, lr=0.1, max_epochs=1, batch_size=100, **options):
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    losses = cross_entropy(lambda batch: module(batch["x_num"]))
    history = fit_classifier(
        module,
        losses,
        training,
        held_out,
        batch_size,
        LoopOptions(max_epochs=max_epochs, lr=lr),
        **options,
    )
    return module, history


def mean_loss(module, labelled, rows):
    logits = module(labelled.inputs.batch(rows)["x_num"])
    return nn.functional.cross_entropy(logits, labelled.y[rows]).item()


def test_weights_act_as_repeated_rows_in_the_loss(labelled):
    _, weighted = fit(labelled)
    _, repeated = fit(unweighted(labelled, REPEATED))
    assert weighted[0]["train_loss"] == pytest.approx(repeated[0]["train_loss"], rel=1e-6)
    module, plain = fit(unweighted(labelled, range(6)), lr=1e-12)
    assert plain[0]["train_loss"] == pytest.approx(mean_loss(module, labelled, range(6)))
    assert weighted[0]["train_loss"] != pytest.approx(plain[0]["train_loss"], rel=1e-3)


def test_the_unit_of_the_weights_does_not_matter(labelled):
    scaled = LabelledInputs(labelled.inputs, labelled.y, 1e3 * labelled.weight)
    (one, _), (other, _) = fit(labelled, max_epochs=3), fit(scaled, max_epochs=3)
    torch.testing.assert_close(one.weight, other.weight)


def test_the_held_out_loss_is_the_weighted_mean_and_chooses_the_epoch(labelled):
    training, held, repeated = labelled.take([1, 2, 4, 5]), labelled.take([0, 3]), [0, 0, 3, 3, 3]
    untrained, _ = fit(training, lr=1e-12)
    last, _ = fit(training, lr=0.5, max_epochs=8)
    module, history = fit(training, held, lr=0.5, max_epochs=8)
    losses = [row["valid_loss"] for row in history]
    assert losses[-1] == pytest.approx(mean_loss(last, labelled, repeated), rel=1e-5)
    best = min([mean_loss(untrained, labelled, repeated), *losses])
    assert mean_loss(module, labelled, repeated) == pytest.approx(best, rel=1e-5)
    assert best < losses[-1]


def test_without_held_out_rows_the_last_epoch_is_kept(labelled):
    for held in (None, labelled.take([])):
        module, history = fit(labelled, held, max_epochs=4)
        assert "valid_loss" not in history[0]
        assert not torch.equal(module.weight, fit(labelled, max_epochs=3)[0].weight)


def test_a_penalty_is_added_to_the_training_loss_alone(labelled):
    _, plain = fit(labelled, labelled, lr=1e-12)
    _, more = fit(labelled, labelled, lr=1e-12, penalty=lambda: torch.tensor(7.0))
    assert more[0]["train_loss"] == pytest.approx(plain[0]["train_loss"] + 7)
    assert more[0]["valid_loss"] == plain[0]["valid_loss"]


def test_scores_stand_in_for_the_loss_on_held_out_rows(labelled):
    _, history = fit(labelled, labelled, scores=lambda batch, y: y.double() + 1)
    expected = np.average([1, 2, 1, 2, 1, 2], weights=WEIGHT)
    assert history[0]["valid_loss"] == pytest.approx(expected)


def test_parameters_without_gradient_stay(labelled):
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    module.weight.requires_grad_(False)
    before = copy.deepcopy(module)
    losses = cross_entropy(lambda batch: module(batch["x_num"]))
    fit_classifier(module, losses, labelled, None, 2, LoopOptions(max_epochs=2, lr=0.1))
    assert torch.equal(module.weight, before.weight)
    assert not torch.equal(module.bias, before.bias)
