"""The self-attention of a block: its linear layers and heads, whatever a library calls them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sklearn_diffuq._backbones.precision import widened

_PROJECTIONS = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
)
_FUSED = "qkv"
_OUTPUTS = ("proj", "project", "out_proj", "o_proj", "out_lin", "output.dense")
_HEADS = ("num_attention_heads", "num_heads", "n_heads")
_NORMS = ("q_norm", "k_norm")


@dataclass(frozen=True, eq=False)
class AttentionLayers:
    """The layers of one self-attention.

    Attributes
    ----------
    path : str
        Dotted path of the attention module within its block; "" where it is the block itself.
    module : torch.nn.Module
        The attention module.
    projections : tuple of torch.nn.Linear
        Layers for queries, keys and values; or a single layer that computes all three.
    output : torch.nn.Linear
        The layer that mixes the heads. It may lie beside the attention module, as in BERT.
    n_heads : int
        Number of heads.
    """

    path: str
    module: nn.Module
    projections: tuple[nn.Linear, ...]
    output: nn.Linear
    n_heads: int

    @property
    def is_fused(self) -> bool:
        """Whether one layer computes queries, keys and values."""
        return len(self.projections) == 1

    @property
    def is_plain(self) -> bool:
        """Whether the module is bidirectional and has no parameters besides those of the layers.

        Position biases, gates and norms inside of the attention are such parameters.
        """
        layers = {id(p) for layer in (*self.projections, self.output) for p in layer.parameters()}
        others = [p for p in self.module.parameters() if id(p) not in layers]
        return not others and not getattr(self.module, "is_causal", False)

    def matrices(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return (weight, bias or None) of queries, keys and values, detached."""
        if not self.is_fused:
            return [(_values(layer.weight), _detached(layer.bias)) for layer in self.projections]
        weight, bias = _values(self.projections[0].weight), _detached(self.projections[0].bias)
        biases: Sequence[Tensor | None] = [None] * 3 if bias is None else bias.chunk(3)
        return list(zip(weight.chunk(3), biases, strict=True))

    def separate_projections(self) -> Sequence[nn.Linear]:
        """Return the layers of queries, keys and values; copies where one layer computes all."""
        return [_linear(*pair) for pair in self.matrices()] if self.is_fused else self.projections

    @property
    def widths_fit(self) -> bool:
        """Whether queries, keys and values have one width, which the output reads."""
        (query, _), (key, _), (value, _) = self.matrices()
        return query.shape == key.shape == value.shape and self.output.in_features == len(value)


def find_attention(block: nn.Module) -> AttentionLayers | None:
    """Return the `AttentionLayers` of the first self-attention in a block, None if there is none.

    Queries, keys and values must have one width, without norms of their own.
    """
    for path, module in block.named_modules():
        projections = _projections_of(module)
        if projections is None or _has_norms(module):
            continue
        output = _output_of(block, module)
        n_heads = next((int(getattr(module, name)) for name in _HEADS if hasattr(module, name)), 0)
        if output is None or n_heads == 0:
            continue
        layers = AttentionLayers(path, module, projections, output, n_heads)
        if layers.widths_fit:
            return layers
    return None


def _projections_of(module: nn.Module) -> tuple[nn.Linear, ...] | None:
    for names in (*_PROJECTIONS, (_FUSED,)):
        found = [getattr(module, name, None) for name in names]
        layers = tuple(layer for layer in found if isinstance(layer, nn.Linear))
        if len(layers) == len(names):
            return layers
    return None


def _output_of(block: nn.Module, attention: nn.Module) -> nn.Linear | None:
    """Return the layer that mixes the heads: in the attention, or beside it."""
    parents = [attention] + [m for m in block.modules() if attention in m.children()]
    for parent in parents:
        for path in _OUTPUTS:
            try:
                found = parent.get_submodule(path)
            except AttributeError:
                continue
            if isinstance(found, nn.Linear):
                return found
    return None


def _has_norms(attention: nn.Module) -> bool:
    norms = [getattr(attention, name, None) for name in _NORMS]
    return any(isinstance(n, nn.Module) and not isinstance(n, nn.Identity) for n in norms)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a new linear layer with copies of a weight and a bias."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], len(weight), bias=bias is not None)
    layer = layer.to(weight)
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(bias)
    return layer


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _values(tensor)


def _values(tensor: Tensor) -> Tensor:
    values: Tensor = widened(tensor.detach())
    return values
