"""One traced forward of a model, and what has to hold for the model to be cut at its blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.calling import call_model, read_logits
from sklearn_diffuq._backbones.context import Batch, Call, Context
from sklearn_diffuq._backbones.cut import Cut, replaced_forwards
from sklearn_diffuq._backbones.discovery import describe_candidates
from sklearn_diffuq._backbones.precision import passes_gradients, widened
from sklearn_diffuq.exceptions import BackboneError

Refused: TypeAlias = Callable[..., BackboneError]  # of a reason and a way out

NESTED_WAY_OUT = (
    "Build nn.TransformerEncoder with enable_nested_tensor=False, or call "
    "torch.backends.mha.set_fastpath_enabled(False)."
)


@dataclass
class Trace:
    """One forward: the order of block calls, their arguments and outputs, and the logits."""

    path: str
    blocks: list[nn.Module]
    order: list[int]
    calls: list[Call]
    outputs: list[Any]
    mutates: list[bool]
    logits: Tensor | None


class CutModel(Protocol):
    """What a cut has to offer in order to be checked; a `Backbone` does."""

    module: nn.Module
    custom_readout: nn.Module | None

    @property
    def n_blocks(self) -> int: ...

    def embed(self, batch: Batch) -> tuple[Tensor, Context]: ...

    def block(self, k: int, h: Tensor, context: Context) -> Tensor: ...

    def native_readout(self, h: Tensor, context: Context) -> Tensor: ...


def same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors are equal bit for bit, up to the sign of zero; NaN equals NaN."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
    )


def trace_blocks(module: nn.Module, batch: Batch, candidates: dict[str, list[nn.Module]]) -> Trace:
    """Trace the first of the candidate lists that the model calls."""
    for path, blocks in candidates.items():
        if len({id(block) for block in blocks}) < len(blocks):
            reason = "hold the same module more than once: they share one layer"
            raise refusal(module, path, reason)
        trace = _trace(module, batch, path, blocks)
        if trace.order:
            return trace
    listed = ", ".join(repr(path) for path in candidates)
    raise BackboneError(
        f"{type(module).__name__} never calls the blocks in {listed}. "
        "Name the list that is by blocks='dotted.path'; what holds the blocks has to call them."
    )


def _trace(module: nn.Module, batch: Batch, path: str, blocks: list[nn.Module]) -> Trace:
    trace = Trace(path, blocks, [], [], [], [], None)

    def recorder(k: int, original: Callable) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            tensors = [value for value in (*args, *kwargs.values()) if _is_float(value)]
            copies = [tensor.clone() for tensor in tensors]
            output = original(*args, **kwargs)
            trace.order.append(k)
            trace.calls.append((args, kwargs))
            trace.outputs.append(output)
            trace.mutates.append(not all(map(same, tensors, copies)))
            return output

        return forward

    with replaced_forwards(blocks, recorder):
        trace.logits = read_logits(module, call_model(module, batch))
    return trace


def check_trace(module: nn.Module, trace: Trace, batch: Batch) -> Cut:
    """Return the Cut that a trace supports, or raise BackboneError with the reason."""
    refused = partial(refusal, module, trace.path)
    n_blocks = len(trace.blocks)
    if trace.order != list(range(n_blocks)):
        repeated = len(set(trace.order)) < len(trace.order)
        raise refused(
            f"are not called once each and in order, but in the order {trace.order[:24]}"
            + (" (a shared layer that is called repeatedly cannot be cut)" if repeated else "")
        )
    slots: list[int | str] = []
    for args, kwargs in trace.calls:
        slot = _hidden_slot(args, kwargs)
        if slot is None:
            raise refused(*_why_no_state(args, kwargs))
        slots.append(slot)
    inputs = [
        args[slot] if isinstance(slot, int) else kwargs[slot]
        for (args, kwargs), slot in zip(trace.calls, slots, strict=True)
    ]
    outputs = [_hidden_output(output, refused) for output in trace.outputs]
    _check_shapes(inputs, outputs, batch, refused)
    if any(trace.mutates):
        raise refused(f"change their arguments in place (block {trace.mutates.index(True)})")
    breaks = [k for k in range(n_blocks - 1) if not same(outputs[k], inputs[k + 1])]
    # The first block belongs to the embedding where it makes what all blocks get (positions of T5
    # and WavLM), or where the model does more after it than after others (DeBERTa's convolution).
    first = int(n_blocks > 2 and (breaks == [0] or (not breaks and _makes_arguments(trace))))
    if breaks and not first:
        raise refused(
            f"do not form a chain: the output of block {breaks[0]} is not the input of block "
            f"{breaks[0] + 1}. A residual or a norm is probably applied outside of the blocks",
            "Wrap what happens between two blocks into one module.",
        )
    return Cut(
        path=trace.path,
        slots=tuple(slots[first:]),
        extras=tuple(
            len(o) - 1 if isinstance(o, (tuple, list)) else None for o in trace.outputs[first:]
        ),
        width=inputs[0].shape[-1],
        dtype=str(inputs[0].dtype).removeprefix("torch."),
        gradients=passes_gradients(module, lambda: call_model(module, batch)),
        first=first,
        handed_on=_handed_on(trace.outputs[first], trace.calls[first]),
    )


def check_replay(backbone: CutModel, batch: Batch, trace: Trace) -> int | None:
    """Refuse the model unless the cut repeats the trace exactly; return the number of outputs."""
    refused = partial(refusal, backbone.module, trace.path)
    more = "are needed for more than their state"
    with _explained(refused, f"{more}: the model fails with its blocks stubbed out"):
        h, context = backbone.embed(batch)
    for k, expected in enumerate(trace.outputs[-backbone.n_blocks :]):
        previous = h
        with _explained(refused, f"{more}: block {k} fails when it is called on its own"):
            h = backbone.block(k, previous, context)
        first_of = expected[0] if isinstance(expected, (tuple, list)) else expected
        if not same(h, widened(first_of)):
            raise refused(
                f"{more}: called on its own, block {k} gives another output than in the model"
            )
        memory = (
            f"have a memory or are random in eval mode: called again, block {k} gives another "
            "output",
            "If the model keeps a cache, turn it off (config.use_cache = False).",
        )
        with _explained(refused, *memory):
            again = backbone.block(k, previous, context)
        if not same(h, again):
            raise refused(*memory)
    if backbone.custom_readout is not None:
        return backbone.native_readout(h, context).shape[-1]
    if trace.logits is None:
        return None
    if not same(backbone.native_readout(h, context), trace.logits):
        raise refused(
            "do not feed the head by their last state alone: from it the readout gives other "
            "logits than the model, so the head uses states of earlier blocks as well"
        )
    return trace.logits.shape[-1]


def refusal(module: nn.Module, path: str, reason: str, way_out: str = "") -> BackboneError:
    """Return the BackboneError with the reason, the way out and the other lists of blocks."""
    return BackboneError(
        f"{type(module).__name__} cannot be cut: its blocks {path!r} {reason}."
        + (f" {way_out}" if way_out else "")
        + f" {describe_candidates(module, without=path)}"
    )


@contextmanager
def _explained(refused: Refused, reason: str, way_out: str = "") -> Iterator[None]:
    """Turn any error of the model into a refusal."""
    try:
        yield
    except Exception as error:
        raise refused(f"{reason} ({error!r})", way_out) from error


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and not value.is_nested


def _hidden_slot(args: tuple, kwargs: dict[str, Any]) -> int | str | None:
    """Return where the state is: the first (n, t, d) floating tensor among the arguments."""
    candidates: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for slot, value in candidates:
        if _is_float(value) and value.ndim == 3:
            return slot
    return None


def _makes_arguments(trace: Trace) -> bool:
    """Tell whether the second block gets more of the first one's output than its state."""
    made = {i for i, _ in _handed_on(trace.outputs[0], trace.calls[1])}
    return bool(made - {i for i, _ in _handed_on(trace.outputs[0], trace.calls[0])})


def _handed_on(output: Any, call: Call) -> tuple[tuple[int, int | str], ...]:
    """Return which values after the state of an output are arguments of a call, and where."""
    args, kwargs = call
    arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    extras = output[1:] if isinstance(output, (tuple, list)) else ()
    found = [
        (i, [slot for slot, argument in arguments if argument is value])
        for i, value in enumerate(extras)
        if isinstance(value, torch.Tensor)
    ]
    return tuple((i, slots[0]) for i, slots in found if slots)


def _why_no_state(args: tuple, kwargs: dict[str, Any]) -> tuple[str, str]:
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
    if any(tensor.is_nested for tensor in tensors):
        return "get nested tensors (the fast path of nn.TransformerEncoder)", NESTED_WAY_OUT
    shapes = [tuple(tensor.shape) for tensor in tensors]
    return (
        f"do not take a state of shape (n, t, d), but tensors of shapes {shapes}",
        "Convolutional and windowed models keep images between blocks and are not supported.",
    )


def _hidden_output(output: Any, refused: Refused) -> Tensor:
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor):
        raise refused(
            "have to return a tensor or a tuple that begins with one, but return "
            f"{type(output).__name__}"
        )
    if output.is_nested:
        raise refused("return nested tensors (the fast path of PyTorch)", NESTED_WAY_OUT)
    return output


def _check_shapes(
    inputs: list[Tensor], outputs: list[Tensor], batch: Batch, refused: Refused
) -> None:
    shapes = [tuple(h.shape) for h in (*inputs, *outputs)]
    if len(set(shapes)) > 1:
        raise refused(
            f"have states of different shapes, {list(dict.fromkeys(shapes))}: a hierarchical model "
            "has no single width",
            "The blocks of one stage can be used if they keep (n, t, d) states.",
        )
    n_rows = next(len(v) for v in batch.values() if isinstance(v, torch.Tensor))
    if shapes[0][0] != n_rows:
        raise refused(
            f"have states of shape {shapes[0]}, but the batch has {n_rows} rows, which have to "
            "come first (batch_first=True)"
        )
