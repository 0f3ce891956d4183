"""Finding the layers of an attention: with them, the softmax attention of the model comes back."""

import pytest
import timm.layers
import torch
import transformers
from tiny_backbones import text
from torch.nn import functional as F

from sklearn_diffuq._backbones.attention import find_attention
from sklearn_diffuq._backbones.ft_transformer import FTBlock

VISION = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    image_size=16, patch_size=8, num_channels=1,
)  # fmt: skip


def bert():
    return text()[0].blocks[0]


def distilbert():
    config = transformers.DistilBertConfig(vocab_size=9, dim=16, n_layers=2, n_heads=2)
    return transformers.DistilBertModel(config).transformer.layer[0]


def vit():
    return transformers.ViTModel(transformers.ViTConfig(**VISION)).layers[0]


def clip():
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
    return next(m for m in model.modules() if type(m).__name__ == "CLIPEncoderLayer")


def timm_vit(**options):
    return timm.models.vision_transformer.Block(16, 2, **options)


def table():
    return FTBlock(16, 2, 32, 0.0)


# Name -> how to make a block, and the paths of its attention and of the output layer
KNOWN = {
    "bert": (bert, "attention.self", "attention.output.dense"),
    "distilbert": (distilbert, "attention", "attention.out_lin"),
    "hf-vit": (vit, "attention", "attention.o_proj"),
    "clip": (clip, "self_attn", "self_attn.out_proj"),
    "timm": (timm_vit, "attn", "attn.proj"),
    "timm-bias": (lambda: timm_vit(qkv_bias=True), "attn", "attn.proj"),
    "table": (table, "", "project"),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_known_architectures(kind):
    make, path, output = KNOWN[kind]
    block = make()
    layers = find_attention(block)
    assert layers.path == path
    assert layers.module is block.get_submodule(path)
    assert layers.output is block.get_submodule(output)
    assert layers.n_heads == 2
    assert layers.is_plain == (kind != "table")  # there the attention is the block


@pytest.mark.parametrize("kind", KNOWN)
@torch.no_grad()
def test_the_layers_repeat_the_attention(kind):
    """The output layer of softmax attention gives what the output layer of the model gave."""
    block = KNOWN[kind][0]().eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layers, seen = find_attention(block), {}
    layers.projections[0].register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    layers.output.register_forward_hook(lambda m, args, output: seen.update(output=output))
    h = torch.randn(3, 5, 16)
    block(h, attention_mask=None) if kind == "clip" else block(h)
    for projections in (
        [F.linear(seen["x"], *pair) for pair in layers.matrices()],
        [layer(seen["x"]) for layer in layers.separate_projections()],
    ):
        q, k, v = (p.unflatten(2, (layers.n_heads, -1)).transpose(1, 2) for p in projections)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        expected = seen["output"]
        torch.testing.assert_close(layers.output(mixed), expected, rtol=1e-4, atol=1e-5)


def test_separated_layers_are_copies_of_a_fused_one():
    layers = find_attention(timm_vit())
    before = layers.projections[0].weight.clone()
    torch.nn.init.zeros_(layers.separate_projections()[0].weight)
    assert torch.equal(layers.projections[0].weight, before)


def test_fused_weights_of_gpt2_are_no_linear_layer():
    assert find_attention(text(decoder=True)[0].blocks[0]) is None


def test_norms_of_queries_and_keys_are_refused():
    assert find_attention(timm_vit(qk_norm=True)) is None


def test_keys_shared_by_heads_are_refused():
    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=32,
    )  # fmt: skip
    assert find_attention(transformers.LlamaModel(config).layers[0]) is None


def test_causal_attention_is_not_plain():
    block = vit()
    layers = find_attention(block)
    layers.module.is_causal = True
    assert not layers.is_plain


def test_attention_with_parameters_of_its_own_is_not_plain():
    block = vit()
    block.attention.register_parameter("bias_table", torch.nn.Parameter(torch.zeros(3)))
    assert not find_attention(block).is_plain
