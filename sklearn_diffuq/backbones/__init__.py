"""Frozen models cut into embedding, blocks and readout.

A wrapped model is read as ``readout(block_L(... block_1(embed(x))))``. The cut needs no code per
architecture: the blocks are found in the module tree, and the embedding and the readout are the
model's own forward with the blocks stubbed out.
"""

from sklearn_diffuq.backbones._discovery import find_blocks
from sklearn_diffuq.backbones._ft_transformer import FTTransformer
from sklearn_diffuq.backbones._hooks import Backbone, Context

__all__ = ["Backbone", "Context", "FTTransformer", "find_blocks"]
