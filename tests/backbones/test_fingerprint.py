import copy

import pytest
import torch

from sklearn_diffuq._backbones.fingerprint import check_same_model, describe_model
from sklearn_diffuq.exceptions import BackboneError


def test_a_model_is_recognised_by_every_weight(vit):
    expected = describe_model(vit, "blocks")
    assert expected["n_blocks"] == 3
    block = sum(p.numel() for p in vit.blocks[0].parameters())
    assert expected["n_block_parameters"] == 3 * block
    for name, parameter in vit.named_parameters():
        changed = copy.deepcopy(vit)
        with torch.no_grad():
            last = changed.get_parameter(name).view(-1)[-1:]
            last.copy_(torch.nextafter(last, last + 1))
        assert describe_model(changed, "blocks")["sha256"] != expected["sha256"], name
        assert parameter.numel() > 0


def test_mode_gradients_and_memory_layout_do_not_matter(vit):
    expected = describe_model(vit, "blocks")
    vit.train().requires_grad_(False)
    weight = vit.blocks[0].mlp.fc1.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    assert describe_model(vit, "blocks") == expected


def test_the_number_type_matters(vit):
    expected = describe_model(vit, "blocks")["sha256"]
    assert describe_model(vit.to(torch.bfloat16), "blocks")["sha256"] != expected


def test_a_model_without_such_blocks_has_none(vit):
    assert describe_model(vit, "encoder.layer")["n_blocks"] == 0


def test_another_model_is_refused_with_both_in_words(vit):
    expected = describe_model(vit, "blocks")
    check_same_model(expected | {"class": "Renamed"}, copy.deepcopy(vit))
    other = copy.deepcopy(vit)
    other.blocks = other.blocks[:2]
    with pytest.raises(BackboneError, match="expected VisionTransformer with 3 .*got .* 2 blocks"):
        check_same_model(expected, other)
    with pytest.raises(BackboneError, match="got Linear with 0 blocks in 'blocks'"):
        check_same_model(expected, torch.nn.Linear(2, 2))
