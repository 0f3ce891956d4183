"""Settings and fixtures shared by all tests."""

import os
import random
from pathlib import Path

# Set before anything imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.load_profile("default")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _fixed_seeds():
    """Start every test from the same global random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - scikit-learn checks draw from the global state
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared():
    """Directory with the real data (``data/``) and fine-tuned models (``models/``).

    ``SKLEARN_DIFFUQ_DATA`` names the data folder, next to which ``models`` lies; without it
    ``../shared`` beside the checkout is used. Tests that need it are skipped when it is absent.
    """
    data = os.environ.get("SKLEARN_DIFFUQ_DATA")
    directory = Path(data).parent if data else ROOT.parent / "shared"
    if not (directory / "data").is_dir():
        pytest.skip(f"no real data under {directory}; set SKLEARN_DIFFUQ_DATA to their folder")
    return directory
