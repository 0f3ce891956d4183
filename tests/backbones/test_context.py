import torch

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import mean_over_tokens


def test_state_goes_where_the_block_takes_it(toy, toy_block, ids):
    class ByKeyword(toy):
        def run(self, h, mask):
            for scale, layer in zip((1.0, 2.0, 3.0), self.layers, strict=True):
                h = layer(scale=scale, state=h) if scale < 3 else layer(scale, h)
            return h

    class Scaled(toy_block):
        def forward(self, scale, state):
            return super().forward(state * scale)

    model = ByKeyword(block=Scaled).eval()
    backbone = Backbone(model).probe(ids)
    h, context = backbone.embed(ids)
    assert context.calls == [((), {"scale": 1.0}), ((), {"scale": 2.0}), ((3.0,), {})]
    args, kwargs = context.arguments(1, h)
    assert args == ()
    assert kwargs["state"] is h
    args, kwargs = context.arguments(2, h)
    assert args[0] == 3.0
    assert args[1] is h


def test_mask_is_the_attention_mask_of_the_tokens(bert, text_batch, toy, ids):
    backbone = Backbone(bert).probe(text_batch)
    mask = backbone.embed(text_batch)[1].mask
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [9, 6, 2]
    assert backbone.embed({"input_ids": text_batch["input_ids"]})[1].mask is None

    class WithFirstToken(toy):  # the mask then has one entry less than there are tokens
        def run(self, h, mask):
            return super().run(torch.cat([h[:, :1], h], 1), None)

    batch = {**ids, "attention_mask": torch.ones_like(ids["ids"])}
    assert Backbone(WithFirstToken()).probe(batch).embed(batch)[1].mask is None


def test_mean_over_tokens_is_that_of_the_real_ones():
    values, lengths = torch.randn(4, 6, 3), [6, 1, 4, 0]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    mask[2] = mask[2].flip(0)  # padding on the left
    values[~mask] = torch.nan
    for found, rows in (
        (mean_over_tokens(values, mask), values),
        (mean_over_tokens(values[..., 0], mask), values[..., 0]),
    ):
        for i, length in enumerate(lengths):
            expected = sum(rows[i, t] for t in range(6) if mask[i, t])
            torch.testing.assert_close(found[i], expected / length if length else found[i] * 0)
    whole = torch.randn(4, 6, 3)
    torch.testing.assert_close(mean_over_tokens(whole, None), whole.sum(1) / 6)
