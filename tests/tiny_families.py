"""Small random models of many architectures, all built offline.

``FAMILIES`` maps a kind to names and recipes; `built` builds a model and a batch once per name. The
tables of ``doc/user_guide/architectures.rst`` list the same names, see `test_architectures.py`.
"""

import functools
import warnings

import timm
import torch
import transformers
from timm.layers import GatedMlp, Mlp
from timm.models import mlp_mixer
from timm.models.naflexvit import NaFlexVit
from torch import nn

from sklearn_diffuq._backbones.backbone import Backbone

LENGTHS = torch.tensor([9, 6, 2])
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
GPT = dict(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=32, pad_token_id=0)
TURNS = ["sliding_attention", "full_attention", "sliding_attention"]
HYBRID = dict(DECODER, layer_types=["linear_attention", "full_attention", "linear_attention"])
DELTA_NET = dict(
    linear_num_value_heads=2,
    linear_num_key_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
SHARED_EXPERT = dict(EXPERTS, shared_expert_intermediate_size=8)
LATENT = dict(
    DECODER, num_key_value_heads=2, head_dim=4, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
    qk_nope_head_dim=4, v_head_dim=8,
)  # fmt: skip
DEEPSEEK = dict(
    LATENT, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
    moe_intermediate_size=8, first_k_dense_replace=1,
)  # fmt: skip
DEBERTA_3 = dict(
    TEXT, relative_attention=True, position_buckets=4, norm_rel_ebd="layer_norm",
    share_att_key=True, pos_att_type=["p2c", "c2p"],
)  # fmt: skip
T5 = dict(
    vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2, pad_token_id=0,
    eos_token_id=1, decoder_start_token_id=0,
)  # fmt: skip
IMAGE = dict(
    image_size=32,
    patch_size=8,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
)
AUDIO = dict(
    TEXT, conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(8, 4), num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2, classifier_proj_size=8,
)  # fmt: skip
TIMM = dict(img_size=32, num_classes=4, patch_size=8, embed_dim=16, depth=3, num_heads=2)


def text_batch(pad_left=False):
    ids = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < LENGTHS[:, None]
    ids, mask = ids * mask, mask.long()
    if pad_left:
        ids, mask = (
            torch.stack([row.roll(9 - int(n)) for row, n in zip(values, LENGTHS)])
            for values in (ids, mask)
        )
    return {"input_ids": ids, "attention_mask": mask}


def image_batch(name="pixel_values"):
    return {name: torch.randn(3, 3, 32, 32)}


def hugging_face(prefix, options, batch=text_batch, head="ForSequenceClassification"):
    config = getattr(transformers, f"{prefix}Config")(num_labels=4, **options)
    return getattr(transformers, f"{prefix}{head}")(config), batch()


def text(prefix, options=TEXT):
    return functools.partial(hugging_face, prefix, options)


def image(prefix, options=IMAGE, batch=image_batch):
    return functools.partial(hugging_face, prefix, options, batch, "ForImageClassification")


def two_towers(prefix, **options):
    texts = dict(TEXT, projection_size=16)
    return dict(vision_config=IMAGE | options, text_config=texts)


def audio_batch():
    real = torch.arange(400) < torch.tensor([400, 300, 200])[:, None]
    return {"input_values": torch.randn(3, 400) * real, "attention_mask": real.long()}


def audio(prefix, options=AUDIO, batch=audio_batch, head="ForSequenceClassification"):
    return functools.partial(hugging_face, prefix, options, batch, head)


class EncoderWithHead(nn.Module):
    """An encoder without a head, and a head on the mean of its real tokens."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(16, 4)

    def forward(self, input_ids, attention_mask):
        h = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(h)
        return self.head((h * mask).sum(1) / mask.sum(1))


def encoder(prefix):
    def build():
        config = getattr(transformers, f"{prefix}Config")(**T5)
        return EncoderWithHead(getattr(transformers, f"{prefix}EncoderModel")(config)), text_batch()

    return build


def siglip2_batch():
    grids = torch.tensor([[4, 4], [4, 3], [2, 4]])
    mask = torch.arange(16) < grids.prod(1)[:, None]
    patches = torch.randn(3, 16, 8 * 8 * 3)
    return {"pixel_values": patches, "pixel_attention_mask": mask.long(), "spatial_shapes": grids}


def spectrogram_batch():
    return {"input_values": torch.randn(3, 24, 16)}


def features_batch(*shape, mask=False):
    batch = {"input_features": torch.randn(3, *shape)}
    return batch | ({"attention_mask": torch.ones(3, shape[0]).long()} if mask else {})


def timm_image(architecture, options=TIMM):
    return lambda: (timm.create_model(architecture, **options), image_batch("x"))


def mixer(block_layer, mlp_ratio, mlp_layer=Mlp):
    model = mlp_mixer.MlpMixer(
        img_size=32, num_classes=4, patch_size=8, num_blocks=3, embed_dim=16,
        block_layer=block_layer, mlp_layer=mlp_layer, mlp_ratio=mlp_ratio,
    )  # fmt: skip
    return model, image_batch("x")


def naflex():
    model = NaFlexVit(patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=4)
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    batch = {
        "patches": torch.randn(3, 16, 8 * 8 * 3),
        "patch_coord": grid.expand(3, -1, -1),
        "patch_valid": torch.arange(16) < torch.tensor([16, 12, 8])[:, None],
    }
    return model, batch


ENCODERS = {
    "BERT": text("Bert"),
    "BERT (eager attention)": text("Bert", dict(TEXT, attn_implementation="eager")),
    "RoBERTa": text("Roberta"),
    "XLM-RoBERTa": text("XLMRoberta"),
    "XLM-RoBERTa-XL": text("XLMRobertaXL"),
    "CamemBERT": text("Camembert"),
    "DistilBERT": text("DistilBert", dict(TEXT, dim=16, n_layers=3, n_heads=2, hidden_dim=24)),
    "DeBERTa": text(
        "Deberta",
        dict(TEXT, relative_attention=True, max_relative_positions=8, pos_att_type=["c2p", "p2c"]),
    ),
    "DeBERTa-v3": text("DebertaV2", DEBERTA_3),
    "DeBERTa-v2 with convolution": text(
        "DebertaV2", dict(DEBERTA_3, conv_kernel_size=3, conv_act="gelu")
    ),
    # The window is shorter than the text, and the first block has no norm before attention.
    "ModernBERT": text(
        "ModernBert",
        dict(TEXT, global_attn_every_n_layers=2, local_attention=4, cls_token_id=1, sep_token_id=2),
    ),
    "EuroBERT": text("EuroBert", DECODER),
    "NomicBERT": text("NomicBert", DECODER),
    "GTE": text("Gte", TEXT),
    "Jina embeddings v3": text("JinaEmbeddingsV3", TEXT),
    "ELECTRA": text("Electra", dict(TEXT, embedding_size=12)),
    "ERNIE": text("Ernie"),
    "MPNet": text("MPNet"),
    "RemBERT": text("RemBert", dict(TEXT, input_embedding_size=12)),
    "RoFormer": text("RoFormer", dict(TEXT, embedding_size=16)),
    "Longformer": text("Longformer", dict(TEXT, attention_window=[4, 4, 4])),
    "BigBird": text("BigBird", dict(TEXT, attention_type="original_full")),
    "MEGATRON-BERT": text("MegatronBert"),
    "LayoutLM": text("LayoutLM"),
    "LUKE": text("Luke", dict(TEXT, entity_vocab_size=10, entity_emb_size=8)),
    "data2vec text": text("Data2VecText"),
    "ESM-2": text("Esm", dict(TEXT, position_embedding_type="rotary")),
    "CANINE": text("Canine", dict(TEXT, downsampling_rate=1, num_hash_buckets=40)),
    "I-BERT": text("IBert"),
    "X-MOD": text("Xmod", dict(TEXT, languages=["en_XX"], default_language="en_XX")),
    "MRA": text("Mra"),
    "T5 (encoder)": encoder("T5"),
    "mT5 (encoder)": encoder("MT5"),
    "UMT5 (encoder)": encoder("UMT5"),
}
DECODERS = {
    "GPT": text("OpenAIGPT", GPT),
    "GPT-2": text("GPT2", GPT),
    "GPT-Neo": text(
        "GPTNeo",
        dict(
            vocab_size=40,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            intermediate_size=24,
            attention_types=[[["global", "local"], 1]],
            window_size=4,
            max_position_embeddings=32,
            pad_token_id=0,
        ),
    ),
    "GPT-J": text("GPTJ", dict(GPT, rotary_dim=4)),
    "GPT-NeoX": text("GPTNeoX"),
    "GPT-OSS": text("GptOss", dict(DECODER, num_local_experts=4, num_experts_per_tok=2)),
    "GPT-BigCode": text("GPTBigCode", GPT),
    "OPT": text("OPT", dict(TEXT, ffn_dim=24, word_embed_proj_dim=16)),
    "BLOOM": text(
        "Bloom", dict(vocab_size=40, hidden_size=16, n_layer=3, n_head=2, pad_token_id=0)
    ),
    "Falcon": text("Falcon"),
    "MPT": text("Mpt", dict(vocab_size=40, d_model=16, n_layers=3, n_heads=2, pad_token_id=0)),
    "Llama": text("Llama", DECODER),
    "Mistral": text("Mistral", dict(DECODER, sliding_window=4)),
    "Ministral": text("Ministral", DECODER),
    "Mixtral": text("Mixtral", dict(DECODER, num_local_experts=4)),
    "Qwen2": text("Qwen2", DECODER),
    "Qwen2-MoE": text("Qwen2Moe", dict(DECODER, **SHARED_EXPERT, mlp_only_layers=[0])),
    "Qwen3": text("Qwen3", DECODER),
    "Qwen3-MoE": text("Qwen3Moe", dict(DECODER, **EXPERTS, mlp_only_layers=[0])),
    "Qwen3-Next": text("Qwen3Next", HYBRID | SHARED_EXPERT | DELTA_NET),
    "Qwen3.5": text("Qwen3_5Text", HYBRID | DELTA_NET),
    "Gemma": text("Gemma", DECODER),
    "Gemma 2": text("Gemma2", dict(DECODER, sliding_window=4, layer_types=TURNS)),
    "Gemma 3": text("Gemma3Text", dict(DECODER, sliding_window=4, layer_types=TURNS)),
    "ModernBERT decoder": text(
        "ModernBertDecoder", dict(TEXT, global_attn_every_n_layers=2, local_attention=4)
    ),
    "Phi": text("Phi"),
    "Phi-3": text("Phi3", DECODER),
    "OLMo 2": text("Olmo2", DECODER),
    "OLMo 3": text("Olmo3", dict(DECODER, sliding_window=4, layer_types=TURNS)),
    "SmolLM3": text("SmolLM3", DECODER),
    "StableLM": text("StableLm", DECODER),
    "StarCoder2": text("Starcoder2", DECODER),
    "GLM-4": text("Glm4", DECODER),
    "EXAONE 4": text("Exaone4", dict(DECODER, sliding_window=4, layer_types=TURNS)),
    "DeepSeek-V2": text("DeepseekV2", DEEPSEEK),
    "DeepSeek-V3": text("DeepseekV3", DEEPSEEK),
    "MiniCPM3": text("MiniCPM3", LATENT),
    "MiniMax": text("MiniMax", dict(HYBRID, num_local_experts=2)),
    "BioGPT": text("BioGpt"),
    "CTRL": text("CTRL", dict(GPT, dff=24)),
}
HUGGING_FACE_IMAGES = {
    "ViT": image("ViT"),
    "DeiT": image("DeiT"),
    "DINOv2": image("Dinov2", dict(IMAGE, mlp_ratio=2)),
    "DINOv2 with registers": image("Dinov2WithRegisters", dict(IMAGE, mlp_ratio=2)),
    "BEiT": image("Beit", dict(IMAGE, use_relative_position_bias=True)),
    "data2vec vision": image("Data2VecVision", dict(IMAGE, use_relative_position_bias=True)),
    "ViT-MSN": image("ViTMSN"),
    "I-JEPA": image("IJepa"),
    "CLIP": image("CLIP", two_towers("CLIP")),
    "MetaCLIP 2": image("MetaClip2", two_towers("MetaClip2")),
    "SigLIP": image("Siglip", two_towers("Siglip")),
    "SigLIP 2": image("Siglip2", two_towers("Siglip2", num_patches=16), siglip2_batch),
}
HUGGING_FACE_AUDIO = {
    "wav2vec 2.0": audio("Wav2Vec2"),
    "wav2vec 2.0 Conformer": audio("Wav2Vec2Conformer"),
    "HuBERT": audio("Hubert"),
    "WavLM": audio("WavLM"),
    "UniSpeech": audio("UniSpeech"),
    "SEW": audio("SEW"),
    "AST": audio(
        "AST",
        dict(IMAGE, max_length=24, num_mel_bins=16, frequency_stride=8, time_stride=8),
        spectrogram_batch,
        "ForAudioClassification",
    ),
    "Whisper": audio(
        "Whisper",
        dict(
            num_mel_bins=8,
            d_model=16,
            encoder_layers=3,
            encoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=24,
            max_source_positions=16,
            vocab_size=40,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            classifier_proj_size=8,
        ),
        functools.partial(features_batch, 8, 32),
        "ForAudioClassification",
    ),
    "wav2vec-BERT 2.0": audio(
        "Wav2Vec2Bert",
        dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24),
        functools.partial(features_batch, 20, 160, mask=True),
    ),
}
TIMM_IMAGES = {
    "ViT": timm_image("vit_tiny_patch16_224"),
    "ViT with RoPE": timm_image("vit_small_patch16_rope_224"),
    "ViT with relative positions": timm_image("vit_relpos_small_patch16_224"),
    "ViT with parallel blocks": timm_image("vit_small_patch16_18x2_224"),
    "ViT hybrid": timm_image("vit_tiny_r_s16_p8_224"),
    "DINOv2 with registers": timm_image("vit_small_patch14_reg4_dinov2"),
    "DINOv3": timm_image("vit_small_patch16_dinov3"),
    "DeiT III": timm_image("deit3_small_patch16_224"),
    "DeiT distilled": timm_image("deit_tiny_distilled_patch16_224"),
    "SigLIP": timm_image("vit_base_patch16_siglip_224"),
    "CLIP": timm_image("vit_base_patch16_clip_224"),
    "Perception Encoder": timm_image("vit_pe_core_tiny_patch16_384"),
    "AIMv2": timm_image("aimv2_large_patch14_224"),
    "FlexiViT": timm_image("flexivit_small"),
    "BEiT": timm_image("beit_base_patch16_224"),
    "BEiT v2": timm_image("beitv2_base_patch16_224"),
    "EVA": timm_image("eva_giant_patch14_224"),
    "EVA-02": timm_image("eva02_tiny_patch14_224"),
    "CaiT": timm_image("cait_xxs24_224"),
    "XCiT": timm_image("xcit_nano_12_p8_224"),
    "ConViT": timm_image("convit_tiny"),
    "MLP-Mixer": functools.partial(mixer, mlp_mixer.MixerBlock, (0.5, 4.0)),
    "ResMLP": functools.partial(mixer, mlp_mixer.ResBlock, 4),
    "gMLP": functools.partial(mixer, mlp_mixer.SpatialGatingBlock, 4, mlp_layer=GatedMlp),
    "NaFlexViT": naflex,
}
FAMILIES = {
    "Text, encoders": ENCODERS,
    "Text, decoders": DECODERS,
    "Images, Hugging Face": HUGGING_FACE_IMAGES,
    "Audio": HUGGING_FACE_AUDIO,
    "Images, timm": TIMM_IMAGES,
}
TEXTS = [("Text, encoders", name) for name in ENCODERS] + [
    ("Text, decoders", name) for name in DECODERS
]
ALL = [(kind, name) for kind, names in FAMILIES.items() for name in names]


@functools.cache
def built(kind, name):
    """Return the model, in eval mode, and the batch of a family; they are not to be changed."""
    return perturbed(*FAMILIES[kind][name]())


@functools.cache
def cut(kind, name):
    """Return the model of a family, cut."""
    model, batch = built(kind, name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")  # WavLM
        return Backbone(model).probe(batch)


def perturbed(model, batch):
    """Move a model's parameters: constants that they start at would hide a wrong cut."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), batch
