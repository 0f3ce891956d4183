"""All steps of a time grid in one call, where they start from states that are known.

In teacher forcing no step waits for another one. What has to hold is looked up in the structure of
the blocks, and then proved on a few rows: the batched call has to repeat the steps one by one.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.context import Batch, Context
from sklearn_diffuq._path.gaussian import tile
from sklearn_diffuq._path.time_grid import Grid, steps_of
from sklearn_diffuq._propagation.propagate import tile_batch
from sklearn_diffuq._transition.grouped_layers import GroupedBlock, NotGroupedError
from sklearn_diffuq._transition.merged_steps import full_precision
from sklearn_diffuq._transition.unified_transition import MergedSteps, UnifiedTransition

PROOF_ROWS = 3
PROOF_TOLERANCE = 1e-3  # of the largest change; a wrong parameter is far beyond it

# Attributes that number a block, or act in training mode only.
_UNLIKE = {"layer_idx", "layer_id", "layer_index", "layer_number", "drop_prob", "training"}


class BatchedSteps:
    """The steps of a time grid, run together; see `batched_steps`."""

    def __init__(self, transition: UnifiedTransition, grid: Grid) -> None:
        self.transition = transition
        self.steps = [transition.intervals.index(interval) for interval in steps_of(grid)]
        self.n_steps = len(self.steps)
        self.block = GroupedBlock(transition._templates[self.steps[0]])
        used = {key: s for key, s in transition.stacks.items() if set(self.steps) & set(s.steps)}
        if any(not set(self.steps) <= set(stack.steps) for stack in used.values()):
            raise NotGroupedError("the blocks have different parameters")
        device = transition.log_variance.device
        self.rows: dict[str, Tensor | None] = {}  # of each stack; None means all of them
        for key, stack in used.items():
            rows = [stack.steps.index(step) for step in self.steps]
            is_all = rows == list(range(len(stack.steps)))
            self.rows[key] = None if is_all else torch.tensor(rows, device=device)

    def context(self, batch: Batch, context: Context) -> Context | None:
        """Return the context of the rows repeated for every step, or None if steps need their own.

        Parameters
        ----------
        batch : dict of str to Tensor
            Of n rows.
        context : Context
            Its context.
        """
        k = self.transition.intervals[self.steps[0]][1] - 1
        calls = [context.calls[self.transition.intervals[i][1] - 1] for i in self.steps]
        if not all(_is_alike(call, calls[0]) for call in calls[1:]):
            return None
        if not _has_tensors(context.calls[k]):
            return context  # nothing that has rows
        with torch.no_grad():
            return self.transition.backbone.embed(tile_batch(batch, self.n_steps))[1]

    def __call__(self, merged: MergedSteps, starts: Tensor, context: Context) -> Tensor:
        """Return the means at the ends of all steps.

        Parameters
        ----------
        merged : MergedSteps
        starts : Tensor of shape (n_steps, n, t, d)
        context : Context
            What `context` returned.

        Returns
        -------
        means : Tensor of shape (n_steps, n, t, d)
        """
        parameters = {
            self.transition.stacks[key].name: value if rows is None else value[rows]
            for key, value in merged.stacked.items()
            if key in self.rows
            for rows in [self.rows[key]]
        }
        buffers = self.transition.buffers_of(self.steps[0], starts.device)
        with merged.precision(starts.device):
            means = self._run(parameters | buffers, starts.flatten(0, 1), context).to(starts)
        return means.unflatten(0, (self.n_steps, -1))

    def _run(self, parameters: dict[str, Tensor], h: Tensor, context: Context) -> Tensor:
        options = self.transition.compile_options
        is_new = self.block._compiled_call_impl is None
        if options is not None and is_new and torch.is_grad_enabled():  # not for the proof
            self.block.compile(*options[0], **options[1])

        def call(*args: Any, **kwargs: Any) -> Any:
            with warnings.catch_warnings():
                if options is not None:  # the compiler looks at merged matrices
                    warnings.filterwarnings(
                        "ignore", r"The \.grad attribute of a Tensor that is not"
                    )
                return self.block(parameters, len(h), args, kwargs)

        k = self.transition.intervals[self.steps[0]][1] - 1
        return self.transition.backbone.block(k, h, context, call=call)


def batched_steps(transition: UnifiedTransition, grid: Grid, batch: Batch) -> BatchedSteps | None:
    """Return the steps of a grid run together, or None where they have to be run one by one.

    Parameters
    ----------
    transition : UnifiedTransition
    grid : tuple of int
    batch : dict of str to Tensor
        Rows to prove it on; the first few are used.
    """
    if len(grid) < 3:
        return None
    ends = [transition.backbone.blocks[stop - 1] for _, stop in steps_of(grid)]
    if any(transition.tied) or not all(_runs_alike(block, ends[0]) for block in ends[1:]):
        return None
    few = {name: value[:PROOF_ROWS] for name, value in batch.items()}
    try:
        steps = BatchedSteps(transition, grid)
        with full_precision(transition.log_variance.device):
            return steps if _is_proved(steps, few) else None
    except torch.OutOfMemoryError:
        raise
    except (NotGroupedError, RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return None  # the block does something else with its parameters


def _is_proved(steps: BatchedSteps, batch: Batch) -> bool:
    """Tell whether the batched call repeats the single ones, with parameters unlike any others."""
    transition, generator = steps.transition, torch.Generator().manual_seed(0)
    h, own = transition.backbone.embed(batch)
    context = steps.context(batch, own)
    if context is None:
        return False

    def unlike(value: Tensor, n_copies: int = 1) -> Tensor:
        draw = torch.randn((n_copies * len(value), *value.shape[1:]), generator=generator)
        scale = 0.3 * value.std(correction=0) + 0.03
        return tile(value, n_copies) + scale * draw.to(value)

    merged = transition.merged()
    merged.stacked = {key: unlike(value) for key, value in merged.stacked.items()}
    starts = unlike(h, steps.n_steps).unflatten(0, (steps.n_steps, -1))
    together = steps(merged, starts, context)
    alone = torch.stack(
        [
            merged(start, transition.intervals[i], own)
            for i, start in zip(steps.steps, starts, strict=True)
        ]
    )
    error = (together - alone).abs().amax()
    return bool(error <= PROOF_TOLERANCE * (alone - starts).abs().amax())


def _is_alike(a: Any, b: Any) -> bool:
    """Tell whether two arguments are the same, whatever the batch: equal tensors need not be."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_is_alike, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_is_alike(a[name], b[name]) for name in a)
    return isinstance(a, (bool, int, float, str)) and a == b


def _has_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return any(map(_has_tensors, value))
    return isinstance(value, Tensor)


def _runs_alike(block: nn.Module, other: nn.Module) -> bool:
    """Tell whether the code of two blocks does the same with the same parameters."""
    parts, others = dict(block.named_modules()), dict(other.named_modules())
    if parts.keys() != others.keys():
        return False
    return all(_is_configured_alike(part, others[name]) for name, part in parts.items())


def _is_configured_alike(part: nn.Module, other: nn.Module) -> bool:
    if type(part) is not type(other) or part._buffers.keys() != other._buffers.keys():
        return False
    for name, buffer in part._buffers.items():
        if not _is_equal(buffer, other._buffers[name]):
            return False
    a, b = _settings(part), _settings(other)
    return a.keys() == b.keys() and all(_is_equal(a[name], b[name]) for name in a)


def _settings(part: nn.Module) -> dict[str, Any]:
    kinds = (bool, int, float, str, tuple, list, torch.dtype, type(None), Tensor)
    return {
        name: value
        for name, value in vars(part).items()
        if isinstance(value, kinds) and name not in _UNLIKE and not name.startswith("_")
    }


def _is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Sequence) and not isinstance(a, str):
        return isinstance(b, Sequence) and len(a) == len(b) and all(map(_is_equal, a, b))
    return bool(a == b)
