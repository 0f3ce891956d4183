"""Models that cannot be cut are refused with the reason and the way out."""

import pytest
import timm
import torch
import transformers
from torch import nn

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.probe import same
from sklearn_diffuq.exceptions import BackboneError

PIXELS = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def refusal(model, batch, **options):
    with pytest.raises(BackboneError) as caught:
        Backbone(model, **options).probe(batch)
    return str(caught.value)


def assert_exact(backbone, batch):
    with backbone.frozen():
        h, context = backbone.embed(batch)
        for k in range(backbone.n_blocks):
            h = backbone.block(k, h, context)
        assert torch.equal(backbone.readout(h, context), backbone.logits(batch))


def swin():
    config = transformers.SwinConfig(
        image_size=32, embed_dim=8, depths=[2, 2], num_heads=[1, 1], window_size=2, num_labels=4
    )
    return transformers.SwinForImageClassification(config)


def test_hierarchical_model_can_be_cut_within_one_stage():
    message = refusal(swin(), PIXELS)
    assert "states of different shapes, [(2, 64, 8), (2, 16, 16)]" in message
    assert "hierarchical" in message
    assert "'swin.encoder.layers.1.blocks' (2 x SwinLayer)" in message
    backbone = Backbone(swin(), blocks="swin.encoder.layers.1.blocks").probe(PIXELS)
    assert backbone.width == 16
    assert_exact(backbone, PIXELS)


@pytest.mark.parametrize("name", ["swin", "convnext"])
def test_models_of_images_between_blocks(name):
    if name == "swin":
        model = timm.create_model(
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=2,
            embed_dim=8,
            depths=(2, 2),
            num_heads=(1, 1),
        )
    else:
        config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
        model = transformers.ConvNextForImageClassification(config)
    message = refusal(model, PIXELS if name == "convnext" else {"x": PIXELS["pixel_values"]})
    assert "do not take a state of shape (n, t, d)" in message
    assert "(2, 8, 8, 8)" in message
    assert "not supported" in message


def test_shared_layer_that_is_called_repeatedly(tiny_config, text_batch):
    config = transformers.AlbertConfig(**tiny_config, embedding_size=8)
    model = transformers.AlbertForSequenceClassification(config)
    assert "shared layer repeatedly (ALBERT) cannot" in refusal(model, text_batch)
    message = refusal(model, text_batch, blocks="albert.encoder.albert_layer_groups")
    assert "in the order [0, 0, 0] (a shared layer" in message


def test_shared_layer_that_is_listed_repeatedly(toy, toy_block, ids):
    model = toy()
    model.layers = nn.ModuleList([toy_block(8)] * 3)
    assert "hold the same module more than once" in refusal(model, ids)


def test_encoder_decoder_has_to_name_its_blocks(text_batch):
    config = transformers.BartConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        num_labels=4,
    )
    model = transformers.BartForSequenceClassification(config)
    text_batch["input_ids"][:, 0] = 2  # its head reads the one end-of-text token
    message = refusal(model, text_batch)
    assert "encoder-decoder" in message
    assert "'model.decoder.layers' (3 x BartDecoderLayer)" in message
    for stack, n_blocks in (("encoder", 2), ("decoder", 3)):
        backbone = Backbone(model, blocks=f"model.{stack}.layers").probe(text_batch)
        assert backbone.n_blocks == n_blocks
        assert_exact(backbone, text_batch)


def test_blocks_that_pass_on_more_than_the_state(text_batch):
    config = transformers.LiltConfig(
        vocab_size=40, hidden_size=24, intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=2, channel_shrink_ratio=4, max_position_embeddings=32,
    )  # fmt: skip
    message = refusal(transformers.LiltForSequenceClassification(config), text_batch)
    assert "needed for more than their state: block 1 fails" in message


def test_no_list_is_called(toy, ids):
    class Inline(toy):
        def run(self, h, mask):
            for layer in self.layers:
                h = h + layer.mix.weight.sum()
            return h

    assert "never calls the blocks in 'layers'" in refusal(Inline(), ids)


@pytest.mark.parametrize("order", [(0, 2, 1), (0, 1), (0, 1, 2, 2)])
def test_blocks_out_of_order(toy, ids, order):
    class Ordered(toy):
        def run(self, h, mask):
            for k in order:
                h = self.layers[k](h, mask)
            return h

    assert f"in the order {list(order)}" in refusal(Ordered(), ids)


@pytest.mark.parametrize("between", [lambda h, out: h + out, lambda h, out: out * 1.01])
def test_work_between_blocks(toy, ids, between):
    class Outside(toy):
        def run(self, h, mask):
            for layer in self.layers:
                h = between(h, layer(h, mask))
            return h

    message = refusal(Outside(), ids)
    assert "do not form a chain: the output of block 0" in message
    assert "outside of the blocks" in message
    assert "into one module" in message


def test_work_after_the_last_block_belongs_to_the_readout(toy, ids):
    class Tail(toy):
        def run(self, h, mask):
            return torch.sin(super().run(torch.cos(h), mask))

    assert_exact(Backbone(Tail()).probe(ids), ids)


def test_skip_from_the_embedding_to_the_head_belongs_to_the_readout(toy, ids):
    class Skip(toy):
        def run(self, h, mask):
            return h + super().run(h, mask)

    assert_exact(Backbone(Skip()).probe(ids), ids)


def test_head_that_uses_earlier_states(toy, ids):
    class Collecting(toy):
        def run(self, h, mask):
            states = [h := layer(h, mask) for layer in self.layers]
            return torch.stack(states).mean(0)

    assert "the head uses states of earlier blocks" in refusal(Collecting(), ids)
    # Another readout does not need the head.
    assert Backbone(Collecting(), readout=nn.Linear(8, 2)).probe(ids).n_outputs == 2


def test_something_else_than_the_state_is_needed(toy, toy_block, ids):
    class WithExtra(toy_block):
        def forward(self, h, mask):
            return super().forward(h, mask), h.mean()

    class Uses(toy):
        def run(self, h, mask):
            for layer in self.layers:
                h, extra = layer(h, mask)
            return h + extra

    message = refusal(Uses(block=WithExtra), ids)
    assert "needed for more than their state" in message
    assert "TypeError" in message


def test_memory_between_calls(tiny_config, text_batch):
    class Wrapped(nn.Module):
        use_cache = True  # whatever the configuration says

        def __init__(self):
            super().__init__()
            config = transformers.LlamaConfig(**tiny_config, num_key_value_heads=1)
            self.model = transformers.LlamaForSequenceClassification(config)

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids, attention_mask, use_cache=self.use_cache).logits

    message = refusal(Wrapped(), text_batch)
    assert "called again, block 0" in message
    assert "config.use_cache = False" in message
    model = Wrapped()
    model.use_cache = None
    assert_exact(Backbone(model).probe(text_batch), text_batch)


def test_memory_in_the_arguments(toy, toy_block, ids):
    class Appending(toy_block):
        def forward(self, h, seen):
            seen.append(1)
            return super().forward(h) * len(seen)

    class WithList(toy):
        def run(self, h, mask):
            seen = []
            for layer in self.layers:
                h = layer(h, seen)
            return h

    assert "called again, block 0 gives another output" in refusal(WithList(block=Appending), ids)


def test_random_blocks(toy, toy_block, ids):
    class Random(toy_block):
        def forward(self, h, mask):
            return h + torch.rand_like(h)

    assert "another output" in refusal(toy(block=Random), ids)


def test_blocks_that_write_into_their_input(toy, toy_block, ids):
    class InPlace(toy_block):
        def forward(self, h, mask):
            return h.mul_(1.1)

    assert "change their arguments in place" in refusal(toy(block=InPlace), ids)


def test_outputs_of_other_types(toy, toy_block, ids):
    class Other(toy_block):
        def forward(self, h, mask):
            return {0: super().forward(h, mask)}

    class Unpacking(toy):
        def run(self, h, mask):
            for layer in self.layers:
                h = layer(h, mask)[0]
            return h

    assert "but return dict" in refusal(Unpacking(block=Other), ids)


class TorchEncoder(nn.Module):
    def __init__(self, batch_first=True, **options):
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 3, **options)
        self.head = nn.Linear(16, 4)

    def forward(self, input_ids, attention_mask):
        h = self.embedding(input_ids)
        if not self.encoder.layers[0].self_attn.batch_first:
            h = h.transpose(0, 1)
        h = self.encoder(h, src_key_padding_mask=attention_mask == 0)
        return self.head(h.sum(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors(text_batch):
    message = refusal(TorchEncoder(), text_batch)
    assert "nested tensors" in message
    assert "enable_nested_tensor=False" in message
    backbone = Backbone(TorchEncoder(enable_nested_tensor=False)).probe(text_batch)
    assert_exact(backbone, text_batch)
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        assert_exact(Backbone(TorchEncoder()).probe(text_batch), text_batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_rows_have_to_come_first(text_batch):
    model = TorchEncoder(batch_first=False, enable_nested_tensor=False)
    message = refusal(model, text_batch)
    assert "states of shape (9, 3, 16), but the batch has 3 rows" in message


def test_errors_of_the_model_itself_pass_through(toy):
    class Failing(toy):
        def run(self, h, mask):
            raise KeyError("the model's own")

    with pytest.raises(KeyError, match="the model's own"):
        Backbone(Failing()).probe({"ids": torch.tensor([[9]])})


def test_failed_probe_leaves_no_cut(toy, ids):
    class Collecting(toy):
        def run(self, h, mask):
            states = [h := layer(h, mask) for layer in self.layers]
            return states[0] + states[-1]

    backbone = Backbone(Collecting())
    for _ in range(2):
        with pytest.raises(BackboneError, match="earlier blocks"):
            backbone.probe(ids)
        with pytest.raises(BackboneError, match="call probe"):
            backbone.embed(ids)


def test_same_is_bitwise():
    a = torch.tensor([1.0, torch.nan, torch.inf])
    assert same(a, a.clone())
    assert not same(a, a.nan_to_num())
    assert not same(a, a.double())
    assert not same(a, a[:2])
    assert not same(torch.tensor([1.0]), torch.tensor([1.0]).nextafter(torch.tensor([2.0])))
