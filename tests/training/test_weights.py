import math

import pytest
import torch
from torch import nn

from sklearn_diffuq._training.weights import BestWeights, MovingAverage


def fill(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


@pytest.fixture
def module():
    module = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    fill(module, 1.0)
    return module


def test_the_average_starts_fast_and_is_swapped_in_for_a_while(module):
    weight = module[0].weight
    average = MovingAverage(list(module.parameters()), 0.9)
    fill(module, 2.0)
    average.update()
    expected = 0.1 * 1 + 0.9 * 2  # decay 1 / 10 after one update
    with average.swapped_in():
        assert weight[0, 0].item() == pytest.approx(expected)
    assert weight[0, 0] == 2.0
    fill(module, 4.0)
    average.update()
    average.copy_to_module()
    assert weight[0, 0].item() == pytest.approx(2 / 11 * expected + 9 / 11 * 4)


def test_an_average_without_decay_is_the_module_itself(module):
    average = MovingAverage(list(module.parameters()), 0.0)
    fill(module, 2.0)
    average.update()
    with average.swapped_in():
        assert module[0].weight[0, 0] == 2.0
    average.copy_to_module()
    assert module[0].weight[0, 0] == 2.0


def test_the_best_weights_come_back_with_their_buffers(module):
    best = BestWeights(module, list(module.parameters()))
    for epoch, (score, better) in enumerate(
        [(3.0, True), (math.nan, False), (1.0, True), (1.0, False), (2.0, False)]
    ):
        fill(module, float(epoch))
        module[1].running_mean.fill_(epoch)
        assert best.offer(score, epoch) == better
    assert (best.score, best.epoch) == (1.0, 2)
    best.restore()
    assert module[0].weight[0, 0] == 2.0
    assert module[1].running_mean[0] == 2.0


def test_of_undefined_scores_the_first_weights_are_kept(module):
    best = BestWeights(module, list(module.parameters()))
    for epoch in range(3):
        fill(module, float(epoch))
        best.offer(math.nan, epoch)
    best.restore()
    assert module[0].weight[0, 0] == 0.0
    assert best.epoch == -1
