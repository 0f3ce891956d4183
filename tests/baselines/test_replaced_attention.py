"""Replacing attention: with the old attention in the new place, nothing changes."""

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import transformers
from sklearn.datasets import load_iris
from tiny_backbones import ALL, text, vit
from tiny_baselines import make

from sklearn_diffuq import FTTransformerClassifier
from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.ft_transformer import FTTransformer
from sklearn_diffuq.baselines._gaussian_attention import GaussianAttention, split_heads
from sklearn_diffuq.baselines._replaced_attention import replace_attention


class Softmax(GaussianAttention):
    """Ordinary attention with the projections of the replaced one."""

    def __init__(self, projections):
        super().__init__(0)
        self.maps = torch.nn.ModuleList([projections.query, projections.key, projections.value])
        self.n_heads = projections.n_heads

    def attend(self, x, mask):
        q, k, v = (split_heads(layer(x), self.n_heads) for layer in self.maps)
        seen = None if mask is None else mask[:, None, None]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen), 0.0, 0.0


def table():
    batch = {"x_num": torch.randn(6, 4)}
    module = FTTransformer(4, [], 3, width=16, n_blocks=3, n_heads=2)
    return Backbone(module, blocks="blocks").probe(batch), batch


VISION = dict(
    hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
    image_size=16, patch_size=8, num_channels=1,
)  # fmt: skip


def images(kind, **config):
    module = getattr(transformers, f"{kind}ForImageClassification")(
        getattr(transformers, f"{kind}Config")(**config, num_labels=3)
    )
    batch = {"pixel_values": torch.randn(6, 1, 16, 16)}
    return Backbone(module).probe(batch), batch


def rotary():
    model = timm.models.eva.Eva(
        img_size=16, patch_size=8, in_chans=1, num_classes=3, embed_dim=16, depth=2, num_heads=2,
        use_rot_pos_emb=True, attn_type="rope", class_token=False,
    )  # fmt: skip
    batch = {"x": torch.randn(6, 1, 16, 16)}
    return Backbone(model).probe(batch), batch


def distilbert():
    config = transformers.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=3, n_heads=2, hidden_dim=32, max_position_embeddings=16
    )
    module = transformers.DistilBertForSequenceClassification(config)
    batch = text()[1]
    return Backbone(module).probe(batch), batch


MODELS = {
    "timm": vit,
    "bert": text,
    "distilbert": distilbert,
    "hf-vit": lambda: images("ViT", **VISION),
    "clip": lambda: images("CLIP", vision_config=VISION),
    "table": table,
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_old_attention_in_the_new_place(kind):
    backbone, batch = MODELS[kind]()
    with backbone.frozen():
        expected = backbone.logits(batch)
    seen = []

    def make(projections, k):
        seen.append((k, projections))
        return Softmax(projections)

    attentions = replace_attention(backbone, 2, batch, make)
    assert [k for k, _ in seen] == [backbone.n_blocks - 2, backbone.n_blocks - 1]
    with backbone.frozen():
        torch.testing.assert_close(backbone.logits(batch), expected)
        for attention, (_, projections) in zip(attentions, seen):
            output = attention(projections.states, projections.mask)
            torch.testing.assert_close(output, projections.attend().transpose(1, 2).flatten(2))
    assert not any(m._forward_pre_hooks for m in backbone.module.modules())


def test_padding_is_known():
    backbone, batch = text()
    masks = []
    replace_attention(backbone, 1, batch, lambda p, k: masks.append(p.mask) or Softmax(p))
    assert torch.equal(masks[0], batch["attention_mask"].bool())


def test_attention_of_an_unknown_kind_is_refused():
    backbone, batch = ALL["gpt2"]()
    with pytest.raises(ValueError, match="No self-attention of a known kind was found in GPT2Bl"):
        replace_attention(backbone, 1, batch, lambda p, k: Softmax(p))


def test_causal_attention_is_refused():
    backbone, batch = images("ViT", **VISION)
    backbone.blocks[-1].attention.is_causal = True
    with pytest.raises(ValueError, match="causal, relative and rotary attention"):
        replace_attention(backbone, 1, batch, lambda p, k: Softmax(p))


def test_rotary_attention_is_refused():
    backbone, batch = rotary()
    with pytest.raises(ValueError, match="causal, relative and rotary attention"):
        replace_attention(backbone, 1, batch, lambda p, k: Softmax(p))
    assert not any(m._forward_pre_hooks for m in backbone.module.modules())


@pytest.mark.parametrize("name", ["SGPAClassifier", "KEPSVGPClassifier"])
def test_samples_are_those_of_whole_passes(name):
    """The blocks below the replaced ones are computed once for all samples."""
    X, y = load_iris(return_X_y=True)
    model = FTTransformerClassifier(n_blocks=3, width=8, max_epochs=1, device="cpu")
    clf = make(name, model, n_layers=2, n_samples=3, max_epochs=1).fit(X, y)
    assert clf.n_passes_ == pytest.approx(1 + 2 * 2 / 3)
    samples, batch = clf.sample_proba(X[:9]), clf.wrapped_.encode(X[:9]).batch(range(9))
    for k in range(3):
        for attention in clf._attentions:
            attention.sample = k
        with clf._backbone.frozen(), torch.no_grad():
            expected = clf._backbone.logits(batch).softmax(1)
        np.testing.assert_allclose(samples[k], expected, atol=1e-5)
    assert abs(samples[0] - samples[1]).max() > 1e-4


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_penalty_is_the_divergence_of_a_row(weight):
    """`n` rows pay their own parts in full, and what they have in common once."""
    rng = np.random.default_rng(0)
    own, common = rng.random((20, 2)), rng.random(2)  # of each row and attention
    clf = make("SGPAClassifier", None, kl_weight=weight)
    clf._attentions = [
        SimpleNamespace(divergence=parts) for parts in zip(own.mean(0), common, strict=True)
    ]
    assert 20 * clf._penalty(20) == pytest.approx(weight * (own.sum() + common.sum()))
