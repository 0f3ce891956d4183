"""A decoder of 1.2 billion parameters: does everything fit into the memory of one GPU?

    python examples/benchmarks/speed.py --device cuda --data llama
    python examples/benchmarks/speed.py --data llama --n-blocks 2 --width 512

Layers as in Llama 3.2 1B, random weights in bfloat16: the blockwise fit and its predictions, and
the unified transition, started in closed form and trained for one epoch, which is one of teacher
forcing. Stage C of the objective takes the most memory: the last part is one training step of it. A
part that fails is left out. The second command is a dry run on the CPU, with few short texts.
"""

import gc
from functools import cached_property, partial

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from speed_cases import N_WORDS, random_texts, word_tokenizer
from speed_measures import TIMED_STAGES, captured_objective, with_noise
from timing import Meter, stage_seconds

from sklearn_diffuq import DiffusionCalibratedClassifier, TransformerClassifier

FULL = {"train": 2_000, "held out": 500, "tokens": 128}
DRY = {"train": 64, "held out": 32, "tokens": 16}
RANK = 64


def make_decoder(n_blocks, width):
    """Return a decoder with heads of 64 channels, a quarter of them for keys and values."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=N_WORDS + 4,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=n_blocks,
        num_attention_heads=width // 64,
        num_key_value_heads=max(width // 256, 1),
        max_position_embeddings=256,
        num_labels=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # never in float32, which takes twice the memory
    try:
        return LlamaForSequenceClassification(config)
    finally:
        torch.set_default_dtype(torch.float32)


def measure_decoder(n_blocks, width, device):
    """Return method -> function that yields lines (part, metric, value), to be called in order."""
    decoder = Decoder(n_blocks, width, device)
    return {
        "wrapped model": partial(_measured, lambda: decoder.frozen.predict_proba(decoder.new)),
        "blockwise, fit": partial(_measured, partial(decoder.fit, transition="blockwise")),
        "blockwise, mean": partial(_measured, partial(decoder.predict, "mean")),
        "blockwise, moments": partial(_measured, partial(decoder.predict, "moments")),
        "unified, fit": partial(_measured, partial(decoder.fit, rank=RANK, max_epochs=1)),
        "unified, moments": partial(_measured, partial(decoder.predict, "moments")),
        "unified, step of whole paths": partial(_measured, decoder.train_whole_paths),
    }


class Decoder:
    """A decoder, made when it is first needed, and the last diffusion fitted around it."""

    def __init__(self, n_blocks, width, device):
        self.n_blocks, self.width, self.device = n_blocks, width, device
        self.sizes = FULL if device == "cuda" else DRY
        n = 2 * (self.sizes["train"] + self.sizes["held out"])
        self.texts = random_texts(n, self.sizes["tokens"] - 2)
        self.y = np.random.default_rng(0).integers(2, size=n)
        self.new = self.texts[-self.sizes["held out"] :]
        self.classifier = self.objective = None

    @cached_property
    def frozen(self):
        """The wrapped model."""
        model = make_decoder(self.n_blocks, self.width).to(self.device)
        tokenizer = word_tokenizer(self.sizes["tokens"])
        wrapped = TransformerClassifier(model, preprocessor=tokenizer, device=self.device)
        return FrozenEstimator(wrapped.fit(self.texts, self.y))

    def fit(self, **options):
        """Fit a diffusion."""
        self.classifier = self.objective = None
        start, stop = self.sizes["train"], self.sizes["train"] + self.sizes["held out"]
        diffusion = DiffusionCalibratedClassifier(
            self.frozen, random_state=0, device=self.device, **options
        )
        with captured_objective() as objectives:
            self.classifier = diffusion.fit(
                self.texts[:start],
                self.y[:start],
                X_calibration=self.texts[start:stop],
                y_calibration=self.y[start:stop],
            )
        self.objective = objectives[0] if objectives else None

    def predict(self, inference):
        """Predict new texts."""
        if self.classifier is None:
            raise RuntimeError("nothing was fitted")
        with_noise(self.classifier).set_params(inference=inference).predict_proba(self.new)

    def train_whole_paths(self):
        """Take the gradients of one batch in stage C, as the fit takes them."""
        if self.objective is None:
            raise RuntimeError("nothing was trained")
        objective = self.objective
        objective.transition.train().requires_grad_(True)
        rows = np.arange(min(len(objective.training), 125))
        generator = torch.Generator(self.device).manual_seed(0)
        with objective.backbone.frozen():
            objective(rows, epoch=1, generator=generator)["loss"].backward()
        objective.transition.zero_grad(set_to_none=True)


def _measured(call):
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with stage_seconds(TIMED_STAGES) as stages, Meter() as meter:
        call()
    yield "decoder", "peak GiB", meter.peak_mib / 1024
    yield "decoder", "seconds", meter.seconds
    for name, seconds in stages.items():
        yield "decoder", f"{name}, seconds", seconds
