"""Small random backbones for tests of the stages after the cut."""

import torch
from timm.layers import Mlp
from timm.models import VisionTransformer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)

from sklearn_diffuq._backbones.backbone import Backbone


def _enlarge(model):
    """Scale the initial matrices up, so that blocks change the state as trained ones do."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return model


def vit(n=6):
    """Return a probed ViT of four blocks of width 16, and a batch of `n` images."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=16, patch_size=8, in_chans=1, embed_dim=16, depth=4, num_heads=2, num_classes=3
    )
    batch = {"x": torch.randn(n, 1, 16, 16)}
    return Backbone(_enlarge(model)).probe(batch), batch


def text(n=6, decoder=False):
    """Return a probed BERT or GPT-2 of three blocks of width 16, and a batch with padding."""
    torch.manual_seed(0)
    if decoder:
        config = GPT2Config(
            vocab_size=50, n_positions=16, n_embd=16, n_layer=3, n_head=2, num_labels=2,
            pad_token_id=0,
        )  # fmt: skip
        model = GPT2ForSequenceClassification(config)
    else:
        config = BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=16, num_labels=2,
        )  # fmt: skip
        model = BertForSequenceClassification(config)
    ids = torch.randint(1, 50, (n, 7))
    mask = torch.ones(n, 7, dtype=torch.long)
    mask[0, 4:] = 0
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    return Backbone(_enlarge(model)).probe(batch), batch


ALL = {"vit": vit, "bert": text, "gpt2": lambda n=6: text(n, decoder=True)}


def unequal_vit(n=6):
    """Return a ViT of five blocks with feed-forward widths 64, 64, 24, 24, 20; one has no bias."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=16, patch_size=8, in_chans=1, embed_dim=16, depth=5, num_heads=2, num_classes=3
    )
    for k, width in enumerate([64, 64, 24, 24, 20]):
        model.blocks[k].mlp = Mlp(16, width, bias=k != 1)
    batch = {"x": torch.randn(n, 1, 16, 16)}
    return Backbone(_enlarge(model)).probe(batch), batch


def modernbert(n=6):
    """Return a ModernBERT: its first block lacks a norm, the second sees a window of tokens."""
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_labels=2,
        intermediate_size=32, max_position_embeddings=16, global_attn_every_n_layers=2,
        local_attention=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
        sep_token_id=2,
    )  # fmt: skip
    ids = torch.randint(3, 50, (n, 9))
    mask = torch.ones(n, 9, dtype=torch.long)
    mask[0, 6:] = 0
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    return Backbone(_enlarge(ModernBertForSequenceClassification(config))).probe(batch), batch


UNEQUAL = {"unequal-vit": unequal_vit, "modernbert": modernbert}
