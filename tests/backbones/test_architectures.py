"""Embedding, replayed blocks and readout repeat many architectures bit for bit."""

import pytest
import timm
import torch
import transformers
from timm.models.naflexvit import NaFlexVit
from torch import nn

from sklearn_diffuq._backbones.backbone import Backbone

TEXT = dict(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
DECODER = dict(TEXT, num_key_value_heads=1, head_dim=8)
IMAGE = dict(
    image_size=32,
    patch_size=8,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
)
TIMM = dict(img_size=32, num_classes=4, patch_size=8, embed_dim=16, depth=3, num_heads=2)

# Architecture -> (prefix of the transformers classes, options of the configuration).
HUGGING_FACE_TEXT = {
    "bert": ("Bert", TEXT),
    "bert-eager": ("Bert", dict(TEXT, attn_implementation="eager")),
    "roberta": ("Roberta", TEXT),
    "xlm-roberta": ("XLMRoberta", TEXT),
    "distilbert": (
        "DistilBert",
        dict(TEXT, dim=16, n_layers=3, n_heads=2, hidden_dim=24),
    ),
    "deberta": (
        "Deberta",
        dict(TEXT, relative_attention=True, max_relative_positions=8, pos_att_type=["c2p", "p2c"]),
    ),
    "deberta-v2": (
        "DebertaV2",
        dict(
            TEXT,
            relative_attention=True,
            position_buckets=4,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
        ),
    ),
    # Layers alternate global and local attention, and the window is shorter than the text.
    "modernbert": (
        "ModernBert",
        dict(TEXT, global_attn_every_n_layers=2, local_attention=4, cls_token_id=1, sep_token_id=2),
    ),
    "electra": ("Electra", dict(TEXT, embedding_size=12)),
    "mpnet": ("MPNet", TEXT),
    "gpt2": (
        "GPT2",
        dict(TEXT, n_embd=16, n_layer=3, n_head=2, n_positions=32),
    ),
    "llama": ("Llama", DECODER),
    "mistral": ("Mistral", dict(DECODER, sliding_window=4)),
    "qwen2": ("Qwen2", DECODER),
    "qwen3": ("Qwen3", DECODER),
    "gemma3": (
        "Gemma3Text",
        dict(
            DECODER,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "opt": ("OPT", dict(TEXT, ffn_dim=24, word_embed_proj_dim=16)),
}
HUGGING_FACE_IMAGE = {
    "vit": ("ViT", IMAGE),
    "deit": ("DeiT", IMAGE),
    "dinov2": ("Dinov2", dict(IMAGE, mlp_ratio=2)),
    "dinov2-registers": ("Dinov2WithRegisters", dict(IMAGE, mlp_ratio=2)),
    "beit": ("Beit", dict(IMAGE, use_relative_position_bias=True)),
    "vit-msn": ("ViTMSN", IMAGE),
    "siglip": ("Siglip", dict(vision_config=IMAGE, text_config=dict(TEXT, projection_size=16))),
}
TIMM_IMAGE = {
    "vit": ("vit_tiny_patch16_224", TIMM),
    "vit-reg4-dinov2": ("vit_small_patch14_reg4_dinov2", TIMM),
    "deit3": ("deit3_small_patch16_224", TIMM),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", TIMM),
    "siglip": ("vit_base_patch16_siglip_224", TIMM),
    "clip": ("vit_base_patch16_clip_224", TIMM),
    "beit": ("beit_base_patch16_224", TIMM),
    "eva02": ("eva02_tiny_patch14_224", TIMM),
    "dinov3": ("vit_small_patch16_dinov3", TIMM),
    "cait": ("cait_xxs24_224", TIMM),
    "xcit": ("xcit_nano_12_p8_224", TIMM),
}


def text_batch():
    ids = torch.randint(3, 40, (3, 9))
    mask = torch.arange(9) < torch.tensor([9, 6, 2])[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def hugging_face_text(name):
    prefix, options = HUGGING_FACE_TEXT[name]
    config = getattr(transformers, f"{prefix}Config")(num_labels=4, **options)
    model = getattr(transformers, f"{prefix}ForSequenceClassification")(config)
    return model, text_batch()


def hugging_face_image(name):
    prefix, options = HUGGING_FACE_IMAGE[name]
    config = getattr(transformers, f"{prefix}Config")(num_labels=4, **options)
    model = getattr(transformers, f"{prefix}ForImageClassification")(config)
    return model, {"pixel_values": torch.randn(3, 3, 32, 32)}


def hugging_face_audio():
    config = transformers.Wav2Vec2Config(
        **TEXT,
        num_labels=4,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(8, 4),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
    )
    real = torch.arange(400) < torch.tensor([400, 300, 200])[:, None]
    batch = {"input_values": torch.randn(3, 400) * real, "attention_mask": real.long()}
    return transformers.Wav2Vec2ForSequenceClassification(config), batch


def timm_image(name):
    architecture, options = TIMM_IMAGE[name]
    return timm.create_model(architecture, **options), {"x": torch.randn(3, 3, 32, 32)}


def timm_naflex():
    model = NaFlexVit(patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=4)
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    batch = {
        "patches": torch.randn(3, 16, 8 * 8 * 3),
        "patch_coord": grid.expand(3, -1, -1),
        "patch_valid": torch.arange(16) < torch.tensor([16, 12, 8])[:, None],
    }
    return model, batch


MODELS = {
    **{f"hf-{name}": (hugging_face_text, name) for name in HUGGING_FACE_TEXT},
    **{f"hf-{name}": (hugging_face_image, name) for name in HUGGING_FACE_IMAGE},
    "hf-wav2vec2": (hugging_face_audio,),
    **{f"timm-{name}": (timm_image, name) for name in TIMM_IMAGE},
    "timm-naflexvit": (timm_naflex,),
}


@pytest.mark.parametrize("name", MODELS)
def test_cut_repeats_the_model_exactly(name):
    torch.manual_seed(0)
    build, *arguments = MODELS[name]
    model, batch = build(*arguments)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Heads, biases and layer scales start at constants, which would hide a wrong cut.
            parameter.add_(0.3 * torch.randn_like(parameter))

    backbone = Backbone(model).probe(batch)
    with backbone.frozen():
        # Inside, since some kernels differ in the last bits under torch.no_grad.
        expected = model(**batch) if name.startswith("hf") else model(*batch.values())
        expected = expected.logits if name.startswith("hf") else expected
        h, context = backbone.embed(batch)
        assert h.shape == (3, h.shape[1], backbone.width)
        assert not torch.equal(backbone.readout(h, context), expected)
        for k in range(backbone.n_blocks):
            previous, h = h, backbone.block(k, h, context)
            assert not torch.equal(previous, h)
        assert torch.equal(backbone.readout(h, context), expected)
        assert torch.equal(backbone.logits(batch), expected)
    assert backbone.n_outputs == expected.shape[1] == 4
    assert expected.unique(dim=0).shape[0] == 3
    if name in {f"hf-{text}" for text in HUGGING_FACE_TEXT}:
        assert torch.equal(context.mask, batch["attention_mask"].bool())
    else:
        assert context.mask is None
    assert isinstance(model.get_submodule(backbone.path), nn.ModuleList | nn.Sequential)


def test_enough_architectures_are_covered():
    assert sum(name.startswith("hf-") for name in MODELS) >= 25
    assert sum(name.startswith("timm-") for name in MODELS) >= 12
