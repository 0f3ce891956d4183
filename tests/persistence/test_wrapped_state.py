"""What a wrapped model is recognised by, and its state without the path around it."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from test_transformers import make_images, make_vit

from sklearn_diffuq import FTTransformerClassifier, TransformerClassifier
from sklearn_diffuq._persistence.wrapped_state import describe_model, load_wrapped, wrapped_state


def test_a_model_is_recognised_by_every_weight():
    model = make_vit()
    expected = describe_model(model, "blocks")
    assert expected["n_blocks"] == 3
    block = sum(p.numel() for p in model.blocks[0].parameters())
    assert expected["n_block_parameters"] == 3 * block
    for name, parameter in model.named_parameters():
        changed = copy.deepcopy(model)
        with torch.no_grad():
            last = changed.get_parameter(name).view(-1)[-1:]
            last.copy_(torch.nextafter(last, last + 1))
        assert describe_model(changed, "blocks")["sha256"] != expected["sha256"], name
        assert parameter.numel() > 0


def test_mode_gradients_and_memory_layout_do_not_matter():
    model = make_vit()
    expected = describe_model(model, "blocks")
    model.train().requires_grad_(False)
    weight = model.blocks[0].mlp.fc1.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    assert describe_model(model, "blocks") == expected


def test_the_number_type_matters():
    model = make_vit()
    expected = describe_model(model, "blocks")["sha256"]
    assert describe_model(model.to(torch.bfloat16), "blocks")["sha256"] != expected


def test_a_model_without_such_blocks_has_none():
    assert describe_model(make_vit(), "encoder.layer")["n_blocks"] == 0


def test_a_table_classifier_comes_back_from_json():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"x": rng.normal(size=60), "c": rng.choice(["u", "v", "w"], size=60)})
    X.loc[::9, "c"] = None
    clf = FTTransformerClassifier(max_epochs=1, width=8, device="cpu").fit(X, X["x"] > 0)
    config, tensors = wrapped_state(clf, with_weights=False)
    assert config["encoder"]["categories"] == [["u", "v", "w", None]]
    loaded = load_wrapped(json.loads(json.dumps(config)), tensors, clf.classes_, None)
    X["c"] = X["c"].replace("v", "unseen")
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))


def test_weights_that_do_not_fit_are_refused():
    X, y = make_images()
    clf = TransformerClassifier(make_vit(), finetune=True, max_epochs=1, device="cpu").fit(X, y)
    config, tensors = wrapped_state(clf, with_weights=False)
    config = json.loads(json.dumps(config, default=str))
    assert load_wrapped(config, tensors, clf.classes_, make_vit()).module_ is not clf.module_
    with pytest.raises(ValueError, match="is not the one that was saved: expected Vision"):
        load_wrapped(config, tensors, clf.classes_, make_vit(embed_dim=32))


def test_only_a_linear_readout_is_saved():
    X, y = make_images()
    clf = TransformerClassifier(make_vit(), device="cpu").fit(X, y)
    clf.backbone_.custom_readout = torch.nn.Sequential(torch.nn.Linear(16, 10))
    with pytest.raises(ValueError, match="readout of type Sequential"):
        wrapped_state(clf, with_weights=False)
