"""How many operations a chunk of predictions dispatches, beside the wrapped model's forward.

A GPU waits for whoever launches them; the number does not depend on the machine.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from timing import operations
from transformers import BertConfig, BertForSequenceClassification

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._calibration.calibration import Calibration
from sklearn_diffuq._calibration.predict import CalibratedPath
from sklearn_diffuq._inputs.batching import (
    CPU_CHUNK,
    GPU_CHUNK,
    inference_batches,
    unpadded_batches,
)
from sklearn_diffuq._inputs.columns import Ragged
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._path.covariance import NoiseScales, fit_covariance
from sklearn_diffuq._path.mean import BlockwiseMean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._propagation.linearised import linearise_all
from sklearn_diffuq._propagation.margin_table import MomentTable

NOISE = NoiseScales(0.3, 0.2, 0.3)


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=6, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    rng = np.random.default_rng(0)
    inputs = EncodedInputs({"input_ids": Ragged([rng.integers(1, 60, 20) for _ in range(300)], 0)})
    backbone = Backbone(model).probe(inputs.few("cpu"))
    grid = time_grid(6, 6)
    with backbone.frozen():
        batches = (batch for _, batch in unpadded_batches(inputs))
        statistics = collect_statistics(backbone, batches, steps_of(grid), False)
        covariance = fit_covariance(statistics, 2, torch.Generator().manual_seed(0))
        path = GaussianPath(BlockwiseMean(backbone), covariance, grid)
        law = linearise_all(path, backbone, inputs.take(np.arange(40)))
    return backbone, inputs, path, Calibration(NOISE, 1.3, 0.0, MomentTable.of(law, NOISE))


def _of_a_chunk(bert, inference, calibration):
    """Return the operations of one chunk more, and of the model's forward on such a chunk."""
    backbone, inputs, path, _ = bert
    n_rows = CPU_CHUNK.tokens // 24  # 20 tokens are padded to 24
    calibrated = CalibratedPath(path, calibration, inference, 8, 0)

    def predict(n_chunks):
        rows = inputs.take(np.arange(n_chunks * n_rows))
        calibrated.probabilities(backbone, rows, lambda proba: [proba.mean(0)])

    batch = inputs.batch(np.arange(n_rows), 24)
    with backbone.frozen(), torch.no_grad():
        wrapped = operations(lambda: backbone.module(**batch))
    return operations(lambda: predict(2)) - operations(lambda: predict(1)), wrapped


@pytest.mark.parametrize(("inference", "bar"), [("mean", 1.3), ("moments", 1.7)])
def test_a_chunk_costs_few_more_operations_than_the_wrapped_model(bert, inference, bar):
    calibration = bert[3]
    if inference == "mean":
        calibration = replace(calibration, scales=NoiseScales(), table=None)
    ours, wrapped = _of_a_chunk(bert, inference, calibration)
    assert wrapped < ours <= bar * wrapped


def test_a_thousand_texts_of_128_tokens_are_few_chunks_for_a_device_with_room():
    texts = EncodedInputs({"input_ids": Ragged([np.ones(128, dtype=np.int64)] * 1024, 0)})
    sizes = GPU_CHUNK.of(texts)
    assert len(list(inference_batches(texts, sizes.rows, sizes.tokens))) <= 8
