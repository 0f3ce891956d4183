"""Exact cut of a model into embedding, blocks and readout.

Nothing of a model is re-implemented. `Backbone.embed` and `Backbone.readout` are the model's own
forward with every block stubbed out: the first reads what the stubs were called with, the second
has them hand over the state. `Backbone.block` calls a block with what it was called with. So masks,
positions, final norms, poolers and heads need no code per architecture, and `Backbone.probe` checks
on one batch that the cut repeats the model bit for bit.
"""

import threading
import weakref
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn import functional as F

from sklearn_diffuq._backbones.context import Context, token_mask
from sklearn_diffuq._backbones.discovery import call_model, candidate_blocks, read_logits
from sklearn_diffuq._backbones.probe import (
    check_replay,
    check_trace,
    replaced_forwards,
    trace_blocks,
)
from sklearn_diffuq._inputs.batching import inference_batches
from sklearn_diffuq.exceptions import BackboneError


def stream(backbone, inputs, function, n_tokens):
    """Return ``function(batch)`` of all rows as one float64 array.

    The chunks are those of `inference_batches`: a row's value depends on the row alone.
    """
    device = next(backbone.module.parameters()).device
    limits = {"max_rows": 64} if device.type == "cpu" else {"max_rows": 512, "max_tokens": 2**16}
    values = None
    with backbone.frozen(), torch.no_grad():
        for rows, padded, length in inference_batches(inputs, **limits, n_tokens=n_tokens):
            part = function(inputs.batch(padded, length, device))[: len(rows)]
            part = part.double().cpu().numpy()
            if values is None:
                values = np.empty((len(inputs), *part.shape[1:]))
            values[rows] = part
    return values


def backbone_device(backbone):
    """Return the device of the wrapped model as a str."""
    return str(next(backbone.module.parameters()).device)


# Stubs are set on the module itself, so all cuts of one module share one lock. Locks are kept here
# and not on the Backbone: they cannot be pickled.
_LOCKS = weakref.WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


def _lock_of(module):
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(module, threading.RLock())


class Backbone:
    """A model cut into embedding, blocks and readout.

    States have shape ``(n, t, d)``: rows, tokens, width. Call `probe` once before `embed`, `block`
    and `readout`. The model is not copied. Outside of `frozen`, methods run it in the mode it is
    in; no method leaves a hook, a replaced forward or a changed flag behind. Calls on one module
    from several threads wait for each other. ``sklearn.base.clone`` returns the object itself.

    Parameters
    ----------
    module : torch.nn.Module
        The model. Hugging Face models, and models whose ``forward`` has parameters of all the
        batch's names, are called with keywords; others get the batch's values in order.
    blocks : str, default=None
        Dotted path of the ``ModuleList`` or ``Sequential`` that holds the blocks, such as
        ``"encoder.layer"``. By default the largest list of two or more children of one class that
        the model calls.
    readout : torch.nn.Module, default=None
        Maps pooled features of shape ``(n, d)`` (see `features`) to logits. By default the
        model's own head is used.

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
    n_outputs : int or None
        Number of logits, None without a head.
    has_head : bool
        Whether there are logits, native or from `readout`.

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

    def __init__(self, module, *, blocks=None, readout=None):
        candidate_blocks(module, blocks)  # a wrong path should fail here, not at the first batch
        self.module = module
        self.requested_path = blocks
        self.custom_readout = readout
        self._cut = None

    def __sklearn_clone__(self):
        return self

    # What `probe` found ----------------------------------------------------------------------

    @property
    def path(self):
        return self._probed().path

    @property
    def blocks(self):
        return list(self.module.get_submodule(self.path))

    @property
    def n_blocks(self):
        return len(self._probed().slots)

    @property
    def width(self):
        return self._probed().width

    @property
    def n_outputs(self):
        return self._probed().n_outputs

    @property
    def has_head(self):
        return self.n_outputs is not None

    def _probed(self):
        if self._cut is None:
            raise BackboneError("The model has not been cut yet: call probe(batch) once first.")
        return self._cut

    # The cut ---------------------------------------------------------------------------------

    @contextmanager
    def frozen(self):
        """Hold the lock with the model in eval mode and no parameter requiring a gradient.

        Re-entrant. Every ``training`` and ``requires_grad`` flag is restored on leaving, also
        after an error.
        """
        roots = [root for root in (self.module, self.custom_readout) if root is not None]
        with _lock_of(self.module):
            modes = [(module, module.training) for root in roots for module in root.modules()]
            flags = [(p, p.requires_grad) for root in roots for p in root.parameters()]
            try:
                # Set one by one, and without eval() and train(): those may be overridden.
                for module, _ in modes:
                    module.training = False
                for parameter, _ in flags:
                    parameter.requires_grad_(False)
                yield self
            finally:
                for module, training in modes:
                    module.training = training
                for parameter, requires_grad in flags:
                    parameter.requires_grad_(requires_grad)

    def logits(self, batch):
        """Return the logits of the whole model.

        Parameters
        ----------
        batch : dict of str to torch.Tensor
            The model inputs.

        Returns
        -------
        logits : torch.Tensor of shape (n, n_outputs)
        """
        if self.custom_readout is not None:
            h, context = self.embed(batch)
            for k in range(self.n_blocks):
                h = self.block(k, h, context)
            return self.readout(h, context)
        with _lock_of(self.module):
            return self._require_logits(call_model(self.module, batch))

    def embed(self, batch):
        """Return the state that enters the first block, at the cost of the embedding alone.

        Parameters
        ----------
        batch : dict of str to torch.Tensor
            The model inputs.

        Returns
        -------
        h : torch.Tensor of shape (n, t, d)
        context : Context
            Has to be given to `block` and `readout` with states of this batch.
        """
        cut, calls, states = self._probed(), [], []

        def record(k, args, kwargs):
            slot = cut.slots[k]
            if isinstance(slot, int):
                h, args = args[slot], args[:slot] + args[slot + 1 :]
            else:
                h = kwargs.pop(slot)
            calls.append((args, kwargs))
            states.append(h)
            return h

        self._call_stubbed(batch, record)
        if len(calls) != self.n_blocks:
            raise BackboneError(
                f"{type(self.module).__name__} called {len(calls)} of its {self.n_blocks} blocks. "
                "In training mode some models drop blocks at random: use frozen()."
            )
        mask = token_mask(batch, states[0])
        return states[0], Context(dict(batch), mask, tuple(calls), cut.slots)

    def block(self, k, h, context, call=None):
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
            Called instead of the block, with the block's arguments.

        Returns
        -------
        h : torch.Tensor of shape (n, t, d)
        """
        args, kwargs = context.arguments(k, h)
        with _lock_of(self.module):
            output = (self.blocks[k] if call is None else call)(*args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def readout(self, h, context):
        """Return the logits of a state after the last block.

        Parameters
        ----------
        h : torch.Tensor of shape (n, t, d)
            Any state of the context's batch. Gradients flow through it.
        context : Context
            What `embed` returned for the batch.

        Returns
        -------
        logits : torch.Tensor of shape (n, n_outputs)
        """
        if self.custom_readout is not None:
            return self.custom_readout(self.features(h, context))
        return self._require_logits(self._call_stubbed(context.batch, lambda *call: h))

    def features(self, h, context):
        """Return pooled features: the mean over real tokens of the layer-normalised state.

        Tokens are normalised before the mean, since in models with a final norm single tokens can
        be orders of magnitude longer than all others.

        Parameters
        ----------
        h : torch.Tensor of shape (n, t, d)
            A state of the context's batch.
        context : Context
            What `embed` returned for the batch.

        Returns
        -------
        features : torch.Tensor of shape (n, d)
        """
        h = F.layer_norm(h, h.shape[-1:])
        if context.mask is None:
            return h.mean(dim=1)
        real = context.mask.unsqueeze(-1)
        return h.masked_fill(~real, 0.0).sum(dim=1) / real.sum(dim=1).clamp(min=1)

    def probe(self, batch):
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
            before, self._cut = self._cut, check_trace(self.module, trace, batch)
            try:
                self._cut.n_outputs = check_replay(self, batch, trace)
            except BaseException:
                self._cut = before
                raise
        return self

    def readout_parameter_names(self, batch):
        """Return the names of the module's parameters that its own readout alone uses.

        Parameters
        ----------
        batch : dict of str to torch.Tensor
            The model inputs.

        Returns
        -------
        names : tuple of str
            Names as in ``module.named_parameters()``; blocks and embedding are left out.
        """
        with self.frozen():
            inside = {id(p) for block in self.blocks for p in block.parameters()}
            named = {
                name: p.requires_grad_()
                for name, p in self.module.named_parameters()
                if id(p) not in inside and p.is_floating_point()
            }
            h, _ = self.embed(batch)
            output = self._call_stubbed(batch, lambda *call: h.detach())
            in_readout = _used(self._require_logits(output), named)
            in_embedding = _used(h, named)
        return tuple(name for name in named if name in in_readout - in_embedding)

    # Inside ----------------------------------------------------------------------------------

    def _call_stubbed(self, batch, state):
        """Call the model with block k returning ``state(k, args, kwargs)``."""
        extras = self._probed().extras

        def stub(k, original):
            def forward(*args, **kwargs):
                h = state(k, args, kwargs)
                return h if extras[k] is None else (h, *[None] * extras[k])

            return forward

        with _lock_of(self.module), replaced_forwards(self.blocks, stub):
            return call_model(self.module, batch)

    def _require_logits(self, output):
        logits = read_logits(self.module, output)
        if logits is None:
            raise BackboneError(
                f"{type(self.module).__name__} returns no logits of shape (n, n_classes). Wrap a "
                "classifier, or give a readout=: a module on pooled features of shape (n, d)."
            )
        return logits


def _used(output, named):
    """Return the names of the parameters that an output depends on."""
    if not output.requires_grad:
        return set()
    gradients = torch.autograd.grad(output.sum(), list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
