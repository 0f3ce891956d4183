"""Embedding, replayed blocks and readout repeat many architectures bit for bit."""

import copy
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from tiny_families import (
    ALL,
    FAMILIES,
    LENGTHS,
    TEXT,
    TEXTS,
    TIMM,
    built,
    cut,
    hugging_face,
    image_batch,
    perturbed,
    text_batch,
)
from torch import nn

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._inputs.encode_mapping import encode_mapping
from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._state import State
from sklearn_diffuq._transition.closed_form_start import unified_transition
from sklearn_diffuq._wrapped.padding_side import needs_left_padding
from sklearn_diffuq.exceptions import BackboneError

ROUNDING = 1e-5  # of the largest logit
FULL_WIDTH = 64  # a rank that no matrix of the small models exceeds
# Decoders that count positions from the padding: they are padded on the right.
ABSOLUTE = ["GPT", "GPT-2", "GPT-Neo", "GPT-BigCode", "BioGPT", "CTRL"]
PAGE = Path(__file__).resolve().parents[2] / "doc" / "user_guide" / "architectures.rst"
MISMATCHED_MASKS = pytest.mark.filterwarnings(  # WavLM
    "ignore:Support for mismatched key_padding_mask"
)
WRAPPED = {
    ("Text, encoders", "BERT"): ["query", "value"],
    ("Text, encoders", "ModernBERT"): ["Wqkv"],
    ("Text, decoders", "Llama"): ["q_proj", "v_proj"],
    ("Images, Hugging Face", "DINOv2 with registers"): ["q_proj", "v_proj"],
    ("Images, timm", "EVA-02"): ["fc2"],
}


def answer(model, batch):
    """Return the logits of a model as a user would get them."""
    options = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    by_order = type(model).__module__.startswith("timm.")
    output = model(*batch.values()) if by_order else model(**batch, **options)
    return output.logits if hasattr(output, "logits") else output


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def check_cut(backbone, batch):
    """Check on a batch that the cut repeats the model, and return what the blocks get."""
    with backbone.frozen():
        # Inside, since some kernels differ in the last bits under torch.no_grad.
        expected = answer(backbone.module, batch)
        h, context = backbone.embed(batch)
        assert h.shape == (3, h.shape[1], backbone.width)
        assert not torch.equal(backbone.readout(h, context), expected)
        for k in range(backbone.n_blocks):
            previous, h = h, backbone.block(k, h, context)
            assert not torch.equal(previous, h)
        assert torch.equal(backbone.readout(h, context), expected)
        assert torch.equal(backbone.logits(batch), expected)
        assert torch.equal(backbone.walk(batch, backbone.block), expected)
    assert backbone.n_outputs == expected.shape[1] == 4
    assert expected.unique(dim=0).shape[0] > 1
    return context


@MISMATCHED_MASKS
@pytest.mark.parametrize(("kind", "name"), ALL)
def test_cut_repeats_the_model_exactly(kind, name):
    model, batch = built(kind, name)
    backbone = cut(kind, name)
    context = check_cut(backbone, batch)
    assert re.search(r"(block|layer|\.h)", backbone.path)
    assert isinstance(model.get_submodule(backbone.path), nn.ModuleList | nn.Sequential)
    if "input_ids" in batch and name != "Longformer":  # which pads texts to whole windows
        assert torch.equal(context.mask, batch["attention_mask"].bool())


@pytest.mark.parametrize(("kind", "name"), TEXTS)
def test_cut_repeats_the_model_with_texts_padded_on_the_left(kind, name):
    check_cut(cut(kind, name), text_batch(pad_left=True))


@pytest.mark.parametrize(("kind", "name"), TEXTS)
def test_ragged_texts_get_the_answers_that_they_get_alone(kind, name):
    batch, backbone = built(kind, name)[1], cut(kind, name)
    assert not needs_left_padding(backbone, encode_mapping(batch))
    for pad_left in [False, True] if kind == "Text, decoders" and name not in ABSOLUTE else [False]:
        padded = text_batch(pad_left)
        with backbone.frozen(), torch.no_grad():
            together = backbone.logits(padded)
            for row, n in enumerate(LENGTHS.tolist()):
                place = slice(9 - n, None) if pad_left else slice(n)
                alone = {name: v[row : row + 1, place] for name, v in padded.items()}
                assert relative_error(backbone.logits(alone)[0], together[row]) < ROUNDING


@MISMATCHED_MASKS
@pytest.mark.parametrize(("kind", "name"), ALL)
def test_unified_transition_starts_at_the_model(kind, name):
    batch, backbone = built(kind, name)[1], cut(kind, name)
    n = backbone.n_blocks
    intervals = [*steps_of(time_grid(n, n)), (0, n)]
    moments = collect_statistics(backbone, [batch], intervals, with_moments=True).moments
    with backbone.frozen(), torch.no_grad():
        expected = backbone.logits(batch)
        for rank in (None, FULL_WIDTH):
            transition = unified_transition(backbone, intervals, rank, moments)
            h, context = backbone.embed(batch)
            jump = transition(h, (0, n), context)
            assert torch.isfinite(jump).all()
            for interval in intervals[:-1]:
                h = transition(h, interval, context)
            error = relative_error(backbone.readout(h, context), expected)
            assert error < (ROUNDING if rank is None else 10 * ROUNDING)
            if rank is None:
                n_parameters = transition.n_parameters(time_grid(n, n)) - n * backbone.width
                assert n_parameters == backbone.n_block_parameters


FIRST_BLOCK_IN_EMBEDDING = [
    ("Text, encoders", "DeBERTa-v2 with convolution"),
    ("Text, encoders", "T5 (encoder)"),
    ("Audio", "WavLM"),
]


@MISMATCHED_MASKS
@pytest.mark.parametrize(("kind", "name"), FIRST_BLOCK_IN_EMBEDDING)
def test_a_first_block_that_the_others_need_belongs_to_the_embedding(kind, name):
    model, batch = built(kind, name)
    backbone = cut(kind, name)
    blocks = list(model.get_submodule(backbone.path))
    assert backbone.n_blocks == 2
    assert backbone.blocks == blocks[1:]
    assert cut("Text, encoders", "BERT").n_blocks == 3
    state = backbone.to_state()
    again = Backbone.from_state(
        State(json.loads(json.dumps(state.config)), state.tensors), backbone.module
    )
    with backbone.frozen(), torch.no_grad():
        h, context = again.embed(batch)
        h = again.advance(h, context)
        assert torch.equal(again.readout(h, context), backbone.logits(batch))


class Handing(nn.Module):
    """A thin wrapper that hands on all it gets and returns logits."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, **batch):
        return answer(self.inner, batch)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft
@pytest.mark.parametrize("wrapper", ["DataParallel", "compile", "PEFT", "thin"])
@pytest.mark.parametrize(("kind", "name"), WRAPPED)
def test_wrappers_give_their_own_answers(kind, name, wrapper):
    model, batch = built(kind, name)
    model = copy.deepcopy(model)
    batches = [batch] + ([text_batch(pad_left=True)] if "input_ids" in batch else [])
    if wrapper == "PEFT":
        targets = WRAPPED[kind, name]
        wrapped, _ = perturbed(
            get_peft_model(model, LoraConfig(r=2, target_modules=targets)), batch
        )
    elif wrapper == "compile":
        wrapped = torch.compile(model, backend="eager")
    else:
        wrapped = {"DataParallel": nn.DataParallel, "thin": Handing}[wrapper](model)
    wrapped.eval()
    for batch in batches:
        backbone = Backbone(wrapped).probe(batch)
        with backbone.frozen(), torch.no_grad():
            expected = answer(wrapped if wrapper == "PEFT" else model, batch)
            h, context = backbone.embed(batch)
            h = backbone.advance(h, context)
            assert relative_error(backbone.readout(h, context), expected) < ROUNDING
            assert relative_error(backbone.logits(batch), expected) < ROUNDING


def hierarchical():
    options = dict(img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(2, 2))
    return timm.create_model("swin_tiny_patch4_window7_224", num_heads=(2, 2), **options)


XLM = dict(vocab_size=40, emb_dim=16, n_layers=3, n_heads=2, pad_index=0)
LILT = dict(TEXT, hidden_size=24, channel_shrink_ratio=4, num_attention_heads=2)
XLNET = dict(vocab_size=40, d_model=16, n_layer=3, n_head=2, d_inner=24, pad_token_id=0)
FUNNEL = dict(vocab_size=40, d_model=16, n_head=2, d_head=8, d_inner=24, block_sizes=[2, 2])
REFORMER = dict(
    vocab_size=40, hidden_size=16, attention_head_size=8, feed_forward_size=24, pad_token_id=0,
    num_attention_heads=2, attn_layers=["local", "local"], local_attn_chunk_length=3,
    axial_pos_embds=False, max_position_embeddings=32, is_decoder=False,
)  # fmt: skip
SQUEEZE = dict(
    TEXT, embedding_size=16, q_groups=1, k_groups=1, v_groups=1, post_attention_groups=1,
    intermediate_groups=1, output_groups=1,
)  # fmt: skip
BART = dict(
    vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, pad_token_id=0,
)  # fmt: skip
CANNOT_BE_CUT = {
    "ALBERT": (lambda: hugging_face("Albert", TEXT), "one shared layer repeatedly"),
    "BART": (lambda: hugging_face("Bart", BART), "encoder-decoder model.*Name one"),
    "XLM": (lambda: hugging_face("XLM", XLM), "do not form a chain"),
    "FlauBERT": (lambda: hugging_face("Flaubert", XLM), "do not form a chain"),
    "LiLT": (lambda: hugging_face("Lilt", LILT), "needed for more than their state"),
    "Funnel": (lambda: hugging_face("Funnel", FUNNEL), "needed for more than their state"),
    "Reformer": (lambda: hugging_face("Reformer", REFORMER), "do not form a chain"),
    "SqueezeBERT": (lambda: hugging_face("SqueezeBert", SQUEEZE), "but return dict"),
    "XLNet": (lambda: hugging_face("XLNet", XLNET), "has 3 rows, which have to come first"),
    "Swin": (lambda: (hierarchical(), image_batch("x")), "images between blocks"),
    "SAM": (
        lambda: (timm.create_model("samvit_base_patch16", **TIMM), image_batch("x")),
        "images between blocks",
    ),
}


@pytest.mark.parametrize("name", CANNOT_BE_CUT)
def test_architectures_that_cannot_be_cut_are_refused_with_the_reason(name):
    build, reason = CANNOT_BE_CUT[name]
    model, batch = build()
    with pytest.raises(BackboneError, match=reason):
        Backbone(model.eval()).probe(batch)


PADDING_CHANGES_ANSWERS = {
    "ConvBERT": ("ConvBert", dict(TEXT, embedding_size=16)),
    "FNet": ("FNet", TEXT),
    "MobileBERT": (
        "MobileBert",
        dict(TEXT, embedding_size=8, intra_bottleneck_size=8, true_hidden_size=8),
    ),
    "Nyströmformer": ("Nystromformer", TEXT),
    "YOSO": ("Yoso", TEXT),
}


@pytest.mark.parametrize("name", PADDING_CHANGES_ANSWERS)
def test_architectures_whose_answers_change_with_padding_are_refused(name):
    model, batch = perturbed(*hugging_face(*PADDING_CHANGES_ANSWERS[name]))
    backbone = Backbone(model).probe(batch)
    with pytest.raises(BackboneError, match="answers a text in one way alone"):
        needs_left_padding(backbone, encode_mapping(batch))


def test_the_page_lists_the_families_that_are_tested_and_those_that_are_refused():
    text = PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^   \* - (.+)\n     - ((?:.+\n)(?:       .+\n)*)", text, re.MULTILINE))
    rows.pop("Kind")
    listed = {
        kind: [n.strip() for n in " ".join(t.split()).split(", ")] for kind, t in rows.items()
    }
    expected = {kind: list(names) for kind, names in FAMILIES.items()}
    assert listed == expected | {
        "Cannot be cut": list(CANNOT_BE_CUT),
        "Padding changes the answer": list(PADDING_CHANGES_ANSWERS),
    }


def test_enough_families_are_covered():
    timms = len(FAMILIES["Images, timm"])
    assert timms >= 15
    assert len(ALL) - timms >= 45


class Lookup(nn.Module):
    """A model that is not of Hugging Face and knows ten ids."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.blocks = nn.ModuleList([layer, copy.deepcopy(layer)])
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask=None):
        h = self.embedding(input_ids)
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean(1))


def test_ids_beyond_an_embedding_are_named():
    batch = {"input_ids": torch.tensor([[1, 2], [3, 12]])}
    with pytest.raises(ValueError, match="'input_ids' up to 12.*know numbers below 10"):
        Backbone(Lookup().eval()).probe(batch)
