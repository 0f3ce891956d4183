import pytest
import torch
from torch import nn

from sklearn_diffuq._backbones.ft_transformer import FTTransformer
from sklearn_diffuq._backbones.loading import ModelInputs, load_model

transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def hugging_face(kind, **kwargs):
    config = getattr(transformers, f"{kind}Config")(**(SMALL | kwargs))
    head = "ForImageClassification" if "image_size" in kwargs else "ForSequenceClassification"
    return getattr(transformers, kind + head)(config)


def vit(**kwargs):
    return timm.models.VisionTransformer(embed_dim=16, depth=2, num_heads=2, **kwargs)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: hugging_face("Bert", vocab_size=20, max_position_embeddings=40, pad_token_id=3),
            ModelInputs("text", 40, 3, n_ids={"input_ids": 20, "token_type_ids": 2}),
        ),
        (
            # the first positions belong to padding
            lambda: hugging_face(
                "Roberta", vocab_size=20, max_position_embeddings=40, pad_token_id=1
            ),
            ModelInputs("text", 38, 1, n_ids={"input_ids": 20, "token_type_ids": 2}),
        ),
        (
            lambda: hugging_face("ViT", image_size=32, patch_size=8, num_channels=4),
            ModelInputs("images", n_channels=4, image_size=(32, 32)),
        ),
        (
            lambda: vit(img_size=(8, 16), patch_size=4, in_chans=1),
            ModelInputs("images", n_channels=1, image_size=(8, 16)),
        ),
        (
            lambda: vit(img_size=8, patch_size=4, dynamic_img_size=True),
            ModelInputs("images", n_channels=3),
        ),
        (
            # -1 positions are any number
            lambda: transformers.XLNetForSequenceClassification(
                transformers.XLNetConfig(vocab_size=20, d_model=16, n_layer=2, n_head=2, d_inner=8)
            ),
            ModelInputs("text", None, 5, n_ids={"input_ids": 20}),
        ),
        (lambda: FTTransformer(3, [], 2), ModelInputs()),
        (
            lambda: nn.Sequential(nn.Conv2d(5, 3, 1), nn.Flatten()),
            ModelInputs("images", n_channels=5),
        ),
    ],
)
def test_what_a_model_reads(make, expected):
    assert ModelInputs.of(make()) == expected


def test_saved_models_bring_their_image_processor(tmp_path):
    model = hugging_face("ViT", image_size=32, patch_size=8).half()
    model.save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    loaded, preprocessor = load_model(str(tmp_path))
    assert type(loaded) is type(model)
    assert type(preprocessor).__name__.startswith("ViTImageProcessor")
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].float()), name


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_timm_names_load_trained_weights(name, monkeypatch):
    calls = []
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: calls.append((args, kwargs)))
    assert load_model(name) == (None, None)
    assert calls == [(("vit_tiny_patch16_224",), {"pretrained": True})]


def test_missing_directories_say_so(tmp_path):
    with pytest.raises(ValueError, match="There is no directory"):
        load_model(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="There is no directory"):
        load_model("./nothing")
    with pytest.raises(ValueError, match=r"no config.json"):
        load_model(str(tmp_path))
