"""Moments summed over batches, against those of all rows at once in float64."""

import pytest
import torch
from tiny_backbones import ALL
from torch import nn

from sklearn_diffuq._path.input_moments import MomentCollector, RunningMoments, linear_layers
from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid


@pytest.mark.parametrize("full", [True, False])
def test_running_moments_equal_those_of_all_rows(full):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) + 3
    moments = RunningMoments(full)
    for part in x.split([1, 30, 19]):
        moments.update(part)
    covariance, second = torch.cov(x.double().T, correction=0), x.double().T @ x.double() / 50
    if not full:
        covariance, second = covariance.diagonal(), second.diagonal()
    torch.testing.assert_close(moments.mean(), x.double().mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moments.second_moment(), second, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(moments.covariance(), covariance.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_input_moments_equal_recorded_inputs_and_leave_no_hooks(name):
    backbone, batch = ALL[name]()
    grid = time_grid(backbone.n_blocks, backbone.n_blocks)
    seen, block = [], backbone.blocks[1]
    backbone.module.eval()
    layer_name = {"vit": "mlp.fc1", "bert": "intermediate.dense", "gpt2": "mlp.c_fc"}[name]
    handle = block.get_submodule(layer_name).register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach().double())
    )
    moments = collect_statistics(backbone, [batch], steps_of(grid), with_moments=True).moments
    handle.remove()
    _, context = backbone.embed(batch)
    x = seen[0].flatten(0, 1) if context.mask is None else seen[0][context.mask]
    key = (1, f"{layer_name}.weight")
    torch.testing.assert_close(moments.mean[key].double(), x.mean(0), atol=1e-5, rtol=1e-4)
    expected = x.T @ x / len(x)
    torch.testing.assert_close(moments.second[key].double(), expected, atol=1e-4, rtol=1e-4)
    assert not any(m._forward_pre_hooks for m in backbone.module.modules())


def test_layers_that_get_the_same_tensor_share_one_moment_in_float32():
    backbone, batch = ALL["bert"]()
    with backbone.frozen():
        twice, once = (
            collect_statistics(backbone, n * [batch], ((0, 3),), with_moments=True).moments
            for n in (2, 1)
        )
    moments = twice
    name = "attention.self.{}.weight"
    for k in range(3):
        query, key, value = (moments.second[k, name.format(x)] for x in ("query", "key", "value"))
        assert query is key is value
        means = [moments.mean[k, name.format(x)] for x in ("query", "key", "value")]
        assert means[0] is means[1] is means[2]
    assert len({id(second) for second in moments.second.values()}) == 3 * 4
    assert {second.dtype for second in moments.second.values()} == {torch.float32}
    assert {mean.dtype for mean in moments.mean.values()} == {torch.float32}
    for key, second in moments.second.items():  # nothing is counted twice
        torch.testing.assert_close(second, once.second[key], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_linear_layers_are_named_with_their_input_axis(name):
    backbone, _ = ALL[name]()
    block = backbone.blocks[0]
    found = list(linear_layers(block))
    parameters = dict(block.named_parameters())
    matrices = {k for k, v in parameters.items() if v.ndim == 2}
    assert {weight for weight, _, _, _ in found} == matrices
    for weight, bias, module, axis in found:
        assert parameters[weight] is module.weight
        assert parameters[bias] is module.bias
        assert parameters[bias].shape[0] == module.weight.shape[1 - axis]
        assert axis == (0 if name == "gpt2" else 1)


def test_hooks_are_removed_after_an_error():
    backbone, batch = ALL["vit"]()
    wrong = {"x": batch["x"][:, :, :7]}

    def hooks():
        return [m for m in backbone.module.modules() if m._forward_pre_hooks]

    with MomentCollector(backbone.blocks):
        assert hooks()
    with pytest.raises(AssertionError, match="Input height"):
        collect_statistics(backbone, [wrong], ((0, 1),), with_moments=True)
    assert not hooks()


def test_layers_share_moments_only_if_their_input_has_not_changed_meanwhile():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.value = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            gate = self.gate(x)
            return gate * self.value(x.mul_(0.1))

    block, x = Block(), torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), MomentCollector([block]) as collector:
        block(x.clone())
    second = collector.moments().second
    expected = (x.flatten(0, 1).T @ x.flatten(0, 1)) / 100
    torch.testing.assert_close(second[0, "gate.weight"], expected)
    torch.testing.assert_close(second[0, "value.weight"], 0.01 * expected)
