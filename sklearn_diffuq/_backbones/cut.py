"""Calling a model with its blocks stubbed out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.calling import call_model
from sklearn_diffuq._backbones.context import Batch, Call, Context, token_mask
from sklearn_diffuq._backbones.freezing import lock_of
from sklearn_diffuq._backbones.precision import HALF, widened
from sklearn_diffuq.exceptions import BackboneError

Visit = Callable[[int, Tensor, Context], Tensor]  # (block, state before it, context) -> state after


@dataclass
class Cut:
    """What is known about a model that can be cut.

    ``slots`` says where each block takes the hidden state (position or keyword), ``extras`` how
    many values it returns after it in a tuple (None: it returns the bare state). ``dtype`` is the
    precision of its states, and ``gradients`` says whether gradients pass it. ``first`` leading
    blocks run as part of the embedding; ``handed_on`` lists which of the further values a block
    returns are arguments of its: (number, position or keyword).
    """

    path: str
    slots: tuple[int | str, ...]
    extras: tuple[int | None, ...]
    width: int
    n_outputs: int | None = None
    dtype: str = "float32"
    gradients: bool = True
    first: int = 0
    handed_on: tuple[tuple[int, int | str], ...] = ()

    def to_config(self) -> dict[str, Any]:
        """Return the fields; those that are most often the default only where they are not."""
        default = {"dtype": "float32", "gradients": True, "first": 0, "handed_on": ()}
        config = asdict(self)
        return {name: v for name, v in config.items() if name not in default or v != default[name]}

    @property
    def half(self) -> torch.dtype | None:
        """The precision of the states if it is a half one, else None."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype if dtype in HALF else None

    def own(self, h: Tensor) -> Tensor:
        """Return a state in the precision of the model, where that is a half one."""
        return h if self.half is None else h.to(self.half)


@contextmanager
def replaced_forwards(
    blocks: Sequence[nn.Module], forward_of: Callable[[int, Callable], Callable]
) -> Iterator[None]:
    """Replace the forward of block ``k`` by ``forward_of(k, original)`` within a context."""
    kept = [vars(block).get("forward") for block in blocks]
    try:
        for k, block in enumerate(blocks):
            vars(block)["forward"] = forward_of(k, block.forward)
        yield
    finally:
        for block, forward in zip(blocks, kept, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:  # the model's owner had replaced it already
                vars(block)["forward"] = forward


def call_stubbed(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    cut: Cut,
    batch: Batch,
    state: Callable[[int, tuple, dict[str, Any]], Tensor],
) -> Any:
    """Return the output of the model, with block k returning ``state(k, args, kwargs)``.

    Within `state` blocks are themselves.
    """
    inside = False

    def stub(k: int, original: Callable) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return original(*args, **kwargs)
            inside = True
            try:
                h, n_extras = state(k, args, kwargs), cut.extras[k]
            finally:
                inside = False
            if n_extras is None:
                return h
            extras: list[Any] = [None] * n_extras
            for i, slot in cut.handed_on:
                extras[i] = args[slot] if isinstance(slot, int) else kwargs[slot]
            return (h, *extras)

        return forward

    with lock_of(module), replaced_forwards(blocks, stub):
        return call_model(module, batch)


def walk(
    module: nn.Module, blocks: Sequence[nn.Module], cut: Cut, batch: Batch, visit: Visit
) -> tuple[Any, Tensor, Context]:
    """Run the model once, with `visit` in the place of its blocks.

    Parameters
    ----------
    module : torch.nn.Module
    blocks : sequence of torch.nn.Module
    cut : Cut
    batch : dict of str to torch.Tensor
    visit : callable
        ``visit(k, h, context)`` returns the state (n, t, d) after block k from that before it. The
        context knows the arguments of the blocks up to k.

    Returns
    -------
    output : object
        Of the model.
    h : torch.Tensor of shape (n, t, d)
        The last state.
    context : Context
    """
    calls: list[Call] = []
    h: Tensor
    context: Context

    def state(k: int, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        nonlocal h, context
        slot = cut.slots[k]
        if isinstance(slot, int):
            own, args = args[slot], args[:slot] + args[slot + 1 :]
        else:
            own = kwargs.pop(slot)
        calls.append((args, kwargs))
        if k == 0:
            h = widened(own)
            context = Context(dict(batch), token_mask(batch, h), calls, cut.slots)
        h = visit(k, h, context)
        return cut.own(h)

    output = call_stubbed(module, blocks, cut, batch, state)
    if len(calls) != len(blocks):
        raise BackboneError(
            f"{type(module).__name__} called {len(calls)} of its {len(blocks)} blocks. In training "
            "mode some models drop blocks at random: use frozen()."
        )
    return output, h, context
