"""FT-Transformer for tables (Gorishniy et al. 2021, arXiv:2106.11959), with callable blocks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_diffuq._backbones.context import damped


class FeatureTokenizer(nn.Module):
    """One token per feature: ``x_j * weight_j + bias_j``, or ``embedding[code_j] + bias_j``.

    A missing number, NaN, counts as 0 and adds a learned vector. Code 0 is for categories that were
    not seen in training. Both vectors start at zero: without examples, such a value is the bias.

    Shape:
        - x_num: (n, n_numeric) float; x_cat: (n, n_categorical) integer codes, or None.
        - Output: (n, n_numeric + n_categorical, width).
    """

    offsets: Tensor

    def __init__(self, n_numeric: int, cardinalities: list[int], width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_numeric, width))
        self.bias = nn.Parameter(torch.empty(n_numeric, width))
        self.missing = nn.Parameter(torch.empty(n_numeric, width))
        self.category = nn.Embedding(sum(cardinalities), width)
        self.category_bias = nn.Parameter(torch.empty(len(cardinalities), width))
        offsets = [sum(cardinalities[:j]) for j in range(len(cardinalities))]
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int64))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(width), 1 / math.sqrt(width))
        with torch.no_grad():
            self.missing.zero_()
            self.category.weight[self.offsets] = 0.0

    def forward(self, x_num: Tensor, x_cat: Tensor | None = None) -> Tensor:
        is_missing = torch.isnan(x_num)
        number = x_num.masked_fill(is_missing, 0.0).unsqueeze(-1)
        tokens = number * self.weight + self.bias + is_missing.unsqueeze(-1) * self.missing
        if x_cat is None:
            return tokens
        categories = self.category(x_cat + self.offsets) + self.category_bias
        return torch.cat([tokens, categories], dim=1)


class FTBlock(nn.Module):
    """Pre-norm transformer block with a ReGLU feed-forward part.

    Shape:
        - Input and output: (n, tokens, width).
    """

    def __init__(self, width: int, n_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.project(self._attend(self.attention_norm(h)))
        value, gate = self.expand(self.feedforward_norm(h)).chunk(2, dim=-1)
        hidden = F.dropout(value * F.relu(gate), self.dropout, self.training)
        return h + self.contract(hidden)

    def _attend(self, h: Tensor) -> Tensor:
        n, tokens, width = h.shape
        qkv = self.qkv(h).view(n, tokens, 3, self.n_heads, width // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = None
        if self.training and self.dropout > 0:
            seen = torch.rand(n, 1, 1, tokens, device=h.device) >= self.dropout
            seen[..., 0] = True  # a row always sees its CLS token, so the softmax has a sum
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return mixed.transpose(1, 2).reshape(n, tokens, width)


ONE_THREAD_WIDTH = 128  # up to it, tensors are too small to be worth a second thread


class FTTransformer(nn.Module):
    """Transformer over the features of a table.

    Two things differ from the paper. The first block keeps its first norm, so that all blocks have
    the same parts and one block can stand in for all of them. Attention dropout leaves out whole
    tokens, for all heads and queries of a row: a fraction of the random numbers, and better
    probabilities on small tables.

    Parameters
    ----------
    n_numeric : int
        Number of numeric features. They come within a range; how far outside of it the features of
        a row were, ``beyond_range``, shrinks its logits.
    cardinalities : sequence of int
        Number of codes of each categorical feature; code 0 means an unseen category.
    n_outputs : int
        Number of logits.
    width : int, default=32
        Width of a token; a multiple of `n_heads`.
    n_blocks : int, default=3
        Number of blocks.
    n_heads : int, default=4
        Number of attention heads.
    dropout : float, default=0.1
        Probability that a block's attention does not see a feature, and that a hidden unit of the
        feed-forward part is zero.

    Attributes
    ----------
    blocks : torch.nn.ModuleList
        The blocks; each maps (n, tokens, width) to the same shape.
    n_threads : int or None
        Number of CPU threads that pay; None where all do.

    Examples
    --------
    >>> import torch
    >>> from sklearn_diffuq._backbones.ft_transformer import FTTransformer
    >>> model = FTTransformer(n_numeric=4, cardinalities=[3], n_outputs=2)
    >>> model(torch.randn(5, 4), torch.tensor([[0], [1], [2], [0], [1]])).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        n_numeric: int,
        cardinalities: Sequence[int],
        n_outputs: int,
        *,
        width: int = 32,
        n_blocks: int = 3,
        n_heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % n_heads:
            raise ValueError(f"width must be a multiple of n_heads={n_heads}, got {width}.")
        self.tokenizer = FeatureTokenizer(n_numeric, list(cardinalities), width)
        self.cls = nn.Parameter(torch.empty(width))
        nn.init.uniform_(self.cls, -1 / math.sqrt(width), 1 / math.sqrt(width))
        # two thirds of the usual 4 * width, since the gate doubles the first matrix
        hidden = 8 * width // 3
        self.n_threads = 1 if width <= ONE_THREAD_WIDTH else None
        self.blocks = nn.ModuleList(
            FTBlock(width, n_heads, hidden, dropout) for _ in range(n_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_outputs)

    def forward(
        self, x_num: Tensor, x_cat: Tensor | None = None, beyond_range: Tensor | None = None
    ) -> Tensor:
        tokens = self.tokenizer(x_num, x_cat)
        h = torch.cat([self.cls.expand(len(tokens), 1, -1), tokens], dim=1)
        for block in self.blocks:
            h = block(h)
        return damped(self.head(F.relu(self.norm(h[:, 0]))), beyond_range)
