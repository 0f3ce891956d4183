"""The covariance that the frozen attention has as a Gaussian process.

Attention with the weights ``softmax(q k^T / sqrt(d))`` is the mean of a kernel regression from keys
to values. Its posterior variance at a query, given keys of training tokens, is large where the
query is far from all of them; through the covariance of the values and the output matrix it becomes
a covariance of the state, ``sum_heads W_O Cov(V_head) W_O^T``, which grows with the mean of the
heads' variances.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.attention import AttentionLayers, find_attention
from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import Batch, RealTokens, mean_over_tokens
from sklearn_diffuq._backbones.precision import widened
from sklearn_diffuq._path.covariance import StateCovariance, principal_factors
from sklearn_diffuq._path.distance import (
    GaussianProcessVariance,
    Look,
    StateDistance,
    standardisation,
)
from sklearn_diffuq._path.time_grid import Interval
from sklearn_diffuq._state import State
from sklearn_diffuq.exceptions import BackboneError

N_INDUCING_KEYS = 128  # of each head


def read_attention(block: nn.Module) -> AttentionLayers:
    """Return the layers of a block's attention, or raise BackboneError."""
    layers = find_attention(block)
    if layers is None:
        raise BackboneError(
            f"covariance='attention' cannot read the attention of a {type(block).__name__}: it "
            "needs linear layers for queries, keys and values of equal width and one for the "
            "output, as in BERT and ViT. Use covariance='gp' or 'constant'."
        )
    return layers


def norm_before(
    block: nn.Module, layers: AttentionLayers, run: Callable[[], object], h: Tensor
) -> nn.LayerNorm | None:
    """Return the norm between the state `h` and the attention, None if there is none.

    `run()` applies the block to `h`.
    """
    seen: dict[nn.Module, Tensor] = {}

    def record_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[module] = widened(args[0])

    def record_output(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen[module] = widened(output)

    norms = [m for m in block.modules() if isinstance(m, nn.LayerNorm)]
    reader = layers.projections[0]
    handles = [reader.register_forward_pre_hook(record_input)]
    handles += [norm.register_forward_hook(record_output) for norm in norms]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    x = seen[reader]
    if x.shape == h.shape and torch.equal(x, h):
        return None
    for norm in norms:
        if norm in seen and seen[norm].shape == x.shape and torch.equal(seen[norm], x):
            return norm
    raise BackboneError(
        f"covariance='attention' cannot read what a {type(block).__name__} does before its "
        "attention: neither nothing nor a LayerNorm. Use covariance='gp' or 'constant'."
    )


class AttentionVariance(nn.Module):
    """Posterior variance of the frozen attention at the queries of a state.

    Mean over heads and real tokens of the posterior variance of a Gaussian process given keys.

    Parameters
    ----------
    query_weight : Tensor of shape (d, d)
    query_bias : Tensor of shape (d,) or None
    norm_weight, norm_bias : Tensor of shape (d,) or None
        Of the LayerNorm before the attention.
    norm_eps : float
        0 where there is no norm.
    heads : list of GaussianProcessVariance
        Conditioned on keys.
    """

    kind: ClassVar[str] = "attention"
    query_weight: Tensor
    query_bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    norm_eps: Tensor

    def __init__(
        self,
        query_weight: Tensor,
        query_bias: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        norm_eps: float | Tensor,
        heads: Sequence[GaussianProcessVariance],
    ) -> None:
        super().__init__()
        self.register_buffer("query_weight", query_weight)
        self.register_buffer("query_bias", query_bias)
        self.register_buffer("norm_weight", norm_weight)
        self.register_buffer("norm_bias", norm_bias)
        self.register_buffer("norm_eps", torch.as_tensor(norm_eps, dtype=torch.float64))
        self.heads = nn.ModuleList(heads)

    def normalised(self, h: Tensor) -> Tensor:
        """Return what the attention gets for the state `h`."""
        eps = float(self.norm_eps)
        if eps == 0:
            return h
        return nn.functional.layer_norm(h, h.shape[-1:], self.norm_weight, self.norm_bias, eps)

    def look(self, h: Tensor, real: RealTokens | None) -> Look:
        """Return rho of the states `h` (n, t, d), shape (n,), float64: no state is kept."""
        q = nn.functional.linear(self.normalised(h), self.query_weight, self.query_bias)
        n, t = h.shape[:2]
        heads = cast(Sequence[GaussianProcessVariance], self.heads)
        q = q.unflatten(2, (len(heads), -1))
        rho = torch.stack(
            [p.rho(q[:, :, i].flatten(0, 1)).reshape(n, t) for i, p in enumerate(heads)]
        )
        return (mean_over_tokens(rho.mean(0), None if real is None else real.mask),)

    @staticmethod
    def variances(processes: Sequence["AttentionVariance"], looks: Sequence[Look]) -> Tensor:
        """Return the posterior variances (n, B) that each of B processes has found."""
        return torch.stack([rho for (rho,) in looks], 1)

    def to_state(self) -> State:
        """Return the query, the norm before it, and the process of each head."""
        return State({}, self.state_dict())

    @classmethod
    def from_state(cls, state: State) -> "AttentionVariance":
        """Build the variance that `to_state` described."""
        heads, tensors = state.part("heads"), state.tensors
        n_heads = len({name.split(".")[0] for name in heads.tensors})
        return cls(
            tensors["query_weight"],
            tensors.get("query_bias"),
            tensors.get("norm_weight"),
            tensors.get("norm_bias"),
            tensors["norm_eps"],
            [GaussianProcessVariance.from_state(heads.part(str(i))) for i in range(n_heads)],
        )


class _BlockAttention:
    """Sums over training batches for one block: keys, and covariances of the values."""

    def __init__(self, block: nn.Module) -> None:
        self.block, self.layers = block, read_attention(block)
        self.keys: list[Tensor] = []
        self.pooled: list[Tensor] = []
        self.tokens: list[Tensor] = []
        self.norm: nn.LayerNorm | None = None
        self.known = False

    def observe(self, run: Callable[[], object], h: Tensor, mask: Tensor | None) -> None:
        if not self.known:
            self.norm, self.known = norm_before(self.block, self.layers, run, h), True
        x, norm = h, self.norm
        if norm is not None:
            weight, bias = widened(norm.weight), widened(norm.bias)
            x = nn.functional.layer_norm(h, norm.normalized_shape, weight, bias, norm.eps)
        _, key, value = (nn.functional.linear(x, w, b) for w, b in self.layers.matrices())
        real = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device) if mask is None else mask
        self.keys.append(key[real])
        self.pooled.append(mean_over_tokens(value, mask))
        self.tokens.append(value[real])

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Return the covariance of the pooled values and of the tokens' through the output."""
        out, n_heads = self.layers.output.weight.detach().double(), self.layers.n_heads

        def through_output(parts: list[Tensor]) -> Tensor:
            values = torch.cat(parts).double()
            values = (values - values.mean(0)).unflatten(1, (n_heads, -1))
            total = torch.zeros(len(out), len(out)).to(out)
            for head, matrix in enumerate(out.unflatten(1, (n_heads, -1)).unbind(1)):
                pushed = values[:, head] @ matrix.T
                total = total + pushed.T @ pushed / len(pushed)
            return total

        return through_output(self.pooled), through_output(self.tokens)

    def variance(self, generator: torch.Generator) -> AttentionVariance:
        """Return the `AttentionVariance` of the block."""
        keys = torch.cat(self.keys)
        order = torch.randperm(len(keys), generator=generator)[:N_INDUCING_KEYS]
        keys = keys[order.to(keys.device)].unflatten(1, (self.layers.n_heads, -1))
        (weight, bias), _, _ = self.layers.matrices()
        norm = self.norm
        return AttentionVariance(
            weight.clone(),
            None if bias is None else bias.clone(),
            None if norm is None else widened(norm.weight.detach()),
            None if norm is None or norm.bias is None else widened(norm.bias.detach()),
            0.0 if norm is None else norm.eps,
            [GaussianProcessVariance.given(keys[:, i].cpu()) for i in range(self.layers.n_heads)],
        )


@torch.no_grad()
def attention_covariance(
    backbone: Backbone,
    batches: Sequence[Batch],
    intervals: Sequence[Interval],
    noise_rank: int,
    generator: torch.Generator,
) -> StateCovariance:
    """Build the `StateCovariance` that re-reads the frozen attention (eq. 1.10).

    Parameters
    ----------
    backbone : Backbone
    batches : sequence of dict of Tensor
        Training rows; the first half gives keys and values, the second tells what is ordinary.
    intervals : sequence of (int, int)
        The steps.
    noise_rank : int
    generator : torch.Generator
        Chooses the inducing keys.

    Returns
    -------
    covariance : StateCovariance
        It knows the states before every block at which a step starts, not the last state.

    Raises
    ------
    BackboneError
        If the attention of the blocks cannot be read.
    """
    parts = [_BlockAttention(block) for block in backbone.blocks]
    half = (len(batches) + 1) // 2
    starts = sorted({start for start, _ in intervals})
    for batch in batches[:half]:
        h, context = backbone.embed(batch)
        states = backbone.states(h, context)
        for k, part in enumerate(parts):
            run = partial(backbone.block, k, states[k], context)
            part.observe(run, states[k], context.mask)
    device = parts[0].keys[0].device
    processes = {k: parts[k].variance(generator).to(device) for k in starts}
    seen: dict[int, list[Tensor]] = {k: [] for k in starts}
    for batch in batches[half:] or batches:
        h, context = backbone.embed(batch)
        states = backbone.states(h, context)
        for k in starts:
            seen[k].append(processes[k].look(states[k], context.real)[0])
    pooled, tokens = zip(*(part.covariances() for part in parts), strict=True)
    shared = torch.stack([sum(pooled[start:stop]) for start, stop in intervals])
    token = torch.stack([sum(tokens[start:stop]).diagonal() for start, stop in intervals])
    return StateCovariance(
        intervals,
        principal_factors(shared, noise_rank),
        token.float(),
        {k: StateDistance(processes[k], standardisation(torch.cat(seen[k]))) for k in starts},
    )
