"""Exact cut of a model into embedding, blocks and readout.

Nothing of a model is re-implemented. `Backbone.embed` and `Backbone.readout` are the model's own
forward with every block stubbed out: the first reads what the stubs were called with, the second
has them hand over the state. `Backbone.block` calls a block with what it was called with. So masks,
positions, final norms, poolers and heads need no code per architecture, and `Backbone.probe` checks
on one batch that the cut repeats the model bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_diffuq._backbones.calling import call_model, plainly, required_logits
from sklearn_diffuq._backbones.context import Batch, Context, damped, mean_over_tokens
from sklearn_diffuq._backbones.cut import Cut, Visit, call_stubbed, walk
from sklearn_diffuq._backbones.discovery import candidate_blocks
from sklearn_diffuq._backbones.fingerprint import check_same_model, describe_model
from sklearn_diffuq._backbones.freezing import frozen, lock_of
from sklearn_diffuq._backbones.ft_transformer import FTTransformer
from sklearn_diffuq._backbones.precision import n_weights, widened
from sklearn_diffuq._backbones.probe import check_replay, check_trace, trace_blocks
from sklearn_diffuq._inputs.batching import map_rows
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._inputs.torch_state import at_most_threads
from sklearn_diffuq._state import State
from sklearn_diffuq.exceptions import BackboneError


class Backbone:
    """A model cut into embedding, blocks and readout.

    States have shape ``(n, t, d)``: rows, tokens, width. Call `probe` once before `embed`, `block`
    and `readout`. The model is not copied, and runs in its own precision; states are in float32
    where that is a half one. Outside of `frozen`, methods run it in the mode it is
    in; no method leaves a hook, a replaced forward or a changed flag behind. Calls on one module
    from several threads wait for each other. ``sklearn.base.clone`` returns the object itself.

    Parameters
    ----------
    module : torch.nn.Module
        The model. Inputs that its ``forward`` knows by name are keywords; others go by position,
        in the order of the batch, unless name and position contradict each other (see `bind`).
    blocks : str, default=None
        Dotted path of the ``ModuleList`` or ``Sequential`` that holds the blocks, such as
        ``"encoder.layer"``. By default the largest list of two or more children of one class that
        the model calls.
    readout : torch.nn.Module, default=None
        Maps pooled features of shape ``(n, d)`` (see `features`) to logits. By default the
        model's own head is used.
    columns : list of int, default=None
        Native logits that belong to the classes, in the order of the classes; None keeps all. A
        single native logit z counts as the two logits (0, z).

    Attributes
    ----------
    path : str
        Dotted path of the blocks.
    blocks : list of torch.nn.Module
        The blocks, in order.
    n_blocks : int
        Number of blocks.
    width : int
        Width d of the states.
    device : torch.device
        Where the model is.
    n_outputs : int or None
        Number of logits, None without a head.
    n_block_parameters : int
        Number of parameters of the blocks.

    Raises
    ------
    BackboneError
        If no blocks are found; by `probe`, if the cut does not repeat the model exactly.

    Examples
    --------
    >>> import torch
    >>> from timm.models import VisionTransformer
    >>> from sklearn_diffuq._backbones.backbone import Backbone
    >>> model = VisionTransformer(
    ...     img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=4)
    >>> batch = {"x": torch.randn(5, 3, 16, 16)}
    >>> backbone = Backbone(model).probe(batch)
    >>> backbone.path, backbone.n_blocks, backbone.width, backbone.n_outputs
    ('blocks', 3, 16, 4)
    >>> with backbone.frozen():
    ...     h, context = backbone.embed(batch)
    ...     for k in range(backbone.n_blocks):
    ...         h = backbone.block(k, h, context)
    ...     torch.equal(backbone.readout(h, context), backbone.logits(batch))
    True
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        blocks: str | None = None,
        readout: nn.Module | None = None,
        columns: list[int] | None = None,
    ) -> None:
        candidate_blocks(module, blocks)  # a wrong path should fail here, not at the first batch
        self.module = module
        self.requested_path = blocks
        self.custom_readout = readout
        self.columns = columns
        self._cut: Cut | None = None

    def __sklearn_clone__(self) -> "Backbone":
        return self

    # What `probe` found ----------------------------------------------------------------------

    @property
    def path(self) -> str:
        return self._probed().path

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.module.get_submodule(self.path).children())[self._probed().first :]

    @property
    def n_blocks(self) -> int:
        return len(self._probed().slots)

    @property
    def width(self) -> int:
        return self._probed().width

    @property
    def n_outputs(self) -> int | None:
        return self._probed().n_outputs if self.columns is None else len(self.columns)

    @property
    def passes_gradients(self) -> bool:
        """Whether gradients pass the whole model; some quantised layers stop them."""
        return self._probed().gradients

    @property
    def n_block_parameters(self) -> int:
        return sum(map(n_weights, self.blocks))

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def _probed(self) -> Cut:
        if self._cut is None:
            raise BackboneError("The model has not been cut yet: call probe(batch) once first.")
        return self._cut

    # The cut ---------------------------------------------------------------------------------

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold the model in eval mode, without gradients; see `frozen`."""
        roots = [root for root in (self.module, self.custom_readout) if root is not None]
        n_threads = self.module.n_threads if isinstance(self.module, FTTransformer) else None
        with frozen(self.module, roots), plainly(self.module), at_most_threads(n_threads):
            yield

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits (n, n_outputs) of the whole model for a batch of model inputs."""
        if self.custom_readout is not None:
            h, context = self.embed(batch)
            return self.readout(self.advance(h, context), context)
        with lock_of(self.module):
            return self.align(required_logits(self.module, call_model(self.module, batch)))

    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        """Return the state that enters the first block, at the cost of the embedding alone.

        Returns
        -------
        h : torch.Tensor of shape (n, t, d)
        context : Context
            Has to be given to `block` and `readout` with states of this batch.
        """
        cut, unchanged = self._probed(), lambda k, h, context: h
        _, h, context = walk(self.module, self.blocks, cut, batch, unchanged)
        return h, context

    def walk(self, batch: Batch, visit: Visit) -> Tensor:
        """Return the logits (n, n_outputs) of the model with `visit` in the place of its blocks.

        ``visit(k, h, context)`` returns the state (n, t, d) after block k from that before it.
        Unlike `embed` and then `readout`, this computes embedding and readout once.
        """
        output, h, context = walk(self.module, self.blocks, self._probed(), batch, visit)
        if self.custom_readout is not None:
            return self.readout(h, context)
        return self.align(required_logits(self.module, output))

    def block(
        self, k: int, h: Tensor, context: Context, call: Callable[..., Any] | None = None
    ) -> Tensor:
        """Apply one block to a state.

        Parameters
        ----------
        k : int
            Index of the block, from 0.
        h : torch.Tensor of shape (n, t, d)
            Any state of the context's batch. Gradients flow through it.
        context : Context
            What `embed` returned for the batch.
        call : callable, default=None
            Called instead of the block, with the block's arguments, in float32 at least.

        Returns
        -------
        h : torch.Tensor of shape (n, t, d)
        """
        is_half = self._probed().half is not None
        args, kwargs = context.arguments(k, self._probed().own(h) if call is None else h)
        if call is not None and is_half:
            args, kwargs = widened(args), widened(kwargs)
        with lock_of(self.module), plainly(self.module):
            output = (self.blocks[k] if call is None else call)(*args, **kwargs)
        output = output[0] if isinstance(output, (tuple, list)) else output
        return widened(output) if is_half else output

    def advance(
        self, h: Tensor, context: Context, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """Apply the blocks from `start` up to, not including, `stop`; None means to the last."""
        for k in range(start, self.n_blocks if stop is None else stop):
            h = self.block(k, h, context)
        return h

    def states(self, h: Tensor, context: Context) -> list[Tensor]:
        """Return the embedding `h` (n, t, d) and the state after each block."""
        states = [h]
        for k in range(self.n_blocks):
            states.append(self.block(k, states[-1], context))
        return states

    def readout(self, h: Tensor, context: Context) -> Tensor:
        """Return the logits (n, n_outputs) of a state (n, t, d) after the last block.

        Gradients flow through the state.
        """
        return self.align(self.native_readout(h, context))

    def native_readout(self, h: Tensor, context: Context) -> Tensor:
        """Return the logits of `readout` before the `columns` of the classes are chosen."""
        if self.custom_readout is not None:
            return damped(self.custom_readout(self.features(h, context)), context.beyond)
        h = self._probed().own(h)
        output = call_stubbed(
            self.module, self.blocks, self._probed(), context.batch, lambda k, args, kwargs: h
        )
        return required_logits(self.module, output)

    def align(self, logits: Tensor) -> Tensor:
        """Return the logits (n, n_outputs) of the classes among native logits."""
        if self.columns is None:
            return logits
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits[:, self.columns]

    def features(self, h: Tensor, context: Context) -> Tensor:
        """Return pooled features: the mean over real tokens of the layer-normalised state.

        Tokens are normalised before the mean, since in models with a final norm single tokens can
        be orders of magnitude longer than all others.

        Returns
        -------
        features : torch.Tensor of shape (n, d)
        """
        return mean_over_tokens(F.layer_norm(h, h.shape[-1:]), context.mask)

    def map_rows(self, function: Callable[[Batch], Tensor], inputs: EncodedInputs) -> np.ndarray:
        """Apply a function to all samples, batch by batch, with the model frozen.

        Parameters
        ----------
        function : callable
            ``function(batch)`` returns a tensor with one value per sample on its first axis.
        inputs : EncodedInputs of length n

        Returns
        -------
        values : ndarray of shape (n, ...) and dtype float64
            A sample's value depends on the sample alone.
        """
        with self.frozen(), torch.no_grad():
            (values,) = map_rows(lambda batch: (function(batch).double(),), inputs, self.device)
        return values.numpy()

    def probe(self, batch: Batch) -> "Backbone":
        """Cut the model and check on one batch that the cut repeats it exactly.

        Parameters
        ----------
        batch : dict of str to torch.Tensor
            Model inputs of two or more rows, best with padding.

        Returns
        -------
        self : Backbone

        Raises
        ------
        BackboneError
            Unless every block is called once and in order, maps a state of shape ``(n, t, d)`` to
            one of the same shape that the next block gets unchanged, and embedding, replayed
            blocks and readout give the model's own states and logits, bit for bit.
        """
        with self.frozen():
            trace = trace_blocks(
                self.module, batch, candidate_blocks(self.module, self.requested_path)
            )
            before, cut = self._cut, check_trace(self.module, trace, batch)
            self._cut = cut
            try:
                cut.n_outputs = check_replay(self, batch, trace)
            except BaseException:
                self._cut = before
                raise
        return self

    # Saving and loading ----------------------------------------------------------------------

    def to_state(self) -> State:
        """Return the cut, the columns, a linear readout, and what recognises the model.

        The weights of the model are not part of it.

        Raises
        ------
        ValueError
            If the readout is a module other than a ``torch.nn.Linear``.
        """
        readout = self.custom_readout
        if readout is not None and type(readout) is not nn.Linear:
            raise ValueError(
                f"A readout of type {type(readout).__name__} cannot be saved, only a "
                "torch.nn.Linear."
            )
        config = {
            "columns": self.columns,
            "cut": self._probed().to_config(),
            "model": describe_model(self.module, self.path),
        }
        weights = {} if readout is None else readout.state_dict()
        return State(config, {f"readout.{name}": value for name, value in weights.items()})

    @classmethod
    def from_state(cls, state: State, module: nn.Module) -> "Backbone":
        """Restore the cut on the model that was cut, or on a copy of it, without probing again.

        Raises
        ------
        BackboneError
            If the blocks or the weights of `module` are not those of the model that was cut.
        """
        check_same_model(state.config["model"], module)
        cut, weights = state.config["cut"], state.part("readout").tensors
        backbone = cls(module, blocks=cut["path"], columns=state.config["columns"])
        if weights:
            n_outputs, width = weights["weight"].shape
            readout = nn.Linear(width, n_outputs, bias="bias" in weights)
            readout.load_state_dict(weights)
            backbone.custom_readout = readout.to(backbone.device)
        backbone._cut = Cut(**cut | {name: tuple(cut[name]) for name in ("slots", "extras")})
        return backbone
