"""Following a Gaussian path from the embedding to the logits, by its mean or by sampled paths."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import Batch, Context, token_mask
from sklearn_diffuq._inputs.batching import map_rows
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._path.distance import Look
from sklearn_diffuq._path.gaussian import GaussianTransition, tile
from sklearn_diffuq._path.mean import Mean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.time_grid import Grid, steps_of
from sklearn_diffuq._propagation.path_noise import PathNoise


@dataclass(frozen=True)
class PathEnd:
    """Where paths have led, and what was seen on the way.

    Attributes
    ----------
    state : Tensor of shape (K * n, t, d)
        The last states, path by path.
    variance : Tensor of shape (n, n_steps)
        Mean over paths, tokens and channels of the variance added by each step.
    distance : Tensor of shape (n,)
        Standardised distance to the training data, mean over paths and scored times (see
        `GaussianPath`); zero where the path does not depend on it.
    """

    state: Tensor
    variance: Tensor
    distance: Tensor


@dataclass(frozen=True)
class PathLogits:
    """The logits at the end of paths.

    Attributes
    ----------
    logits : Tensor of shape (K, n, n_classes)
    variance, distance : Tensor
        Those of `PathEnd`.
    seen : tuple of Tensor of shape (n, ...)
        What they were made of, where the mean was followed: the last state, and what was seen of
        states on the way.
    """

    logits: Tensor
    variance: Tensor
    distance: Tensor
    seen: tuple[Tensor, ...] = ()


ShowEmbedding = Callable[[Tensor, Context], None]
Draw = Callable[[GaussianTransition, int], Tensor]  # (law, step) -> next state


class MeanWalk:
    """Follows the mean of a path while the wrapped model calls its blocks (eq. 6.4).

    Nothing on the way depends on a distance: states are looked at in passing, and judged together
    at the end.

    Parameters
    ----------
    path : GaussianPath
    look : callable, default=None
        Is shown the embedding.
    """

    context: Context
    state: Tensor
    beyond: Tensor | None

    def __init__(self, path: GaussianPath, look: ShowEmbedding | None = None) -> None:
        self.path, self.look = path, look
        self.ends = {stop - 1: step for step, (_, stop) in enumerate(path.steps)}
        self.times = path.observed_times
        self.looks: dict[int, Look] = {}

    def __call__(self, k: int, h: Tensor, context: Context) -> Tensor:
        """Return the state (n, t, d) after block k: the step's where one ends, else `h`."""
        if k == 0:
            self.context, self.beyond = context, context.beyond
            if self.look is not None:
                self.look(h, context)
            self._see(h, 0)
        if k in self.ends:
            step = self.ends[k]
            h = self.path.mean(h, self.path.steps[step], context)
            self._see(h, step + 1)
            self.state = h
        return h

    def _see(self, h: Tensor, time: int) -> None:
        if time in self.times:
            block, real = self.path.grid[time], self.context.real
            self.looks[time] = self.path.covariance.look(h, block, real)

    @property
    def seen(self) -> tuple[Tensor, ...]:
        """The last state, and what was seen of states, each (n, ...)."""
        return (self.state, *(part for look in self.looks.values() for part in look))

    def judge(self, logits: Tensor) -> PathLogits:
        """Return the logits (n, n_classes) that the walk led to, with what was seen.

        More logits than rows were followed are those of copies of the rows, in turn.
        """
        path, n, looks, beyond = self.path, len(logits), self.looks, self.beyond
        if n > len(self.state):
            rows = _in_turn(len(self.state), n, logits.device)
            looks = {time: tuple(part[rows] for part in look) for time, look in looks.items()}
            beyond = None if beyond is None else beyond[rows]
        distances = path.distances_of(looks, beyond)
        variance = logits.new_zeros(n, path.n_steps)
        if path.scales.any_noise:
            of_step = zip(range(path.n_steps), distances, strict=False)
            laws = [path.law(s, logits[:, None], self.context, d) for s, d in of_step]
            variance = torch.stack([law.mean_variance() for law in laws], 1)
        distance = path.mean_distance(distances)
        distance = logits.new_zeros(n) if distance is None else distance
        return PathLogits(logits[None], variance, distance, self.seen)


def follow_samples(
    path: GaussianPath, h: Tensor, context: Context, tiled_context: Context, noise: PathNoise
) -> PathEnd:
    """Draw K paths from the embedding (eq. 6.1).

    Parameters
    ----------
    path : GaussianPath
    h : Tensor of shape (n, t, d)
    context, tiled_context : Context
        Of the n rows, and of the same rows repeated for the K paths.
    noise : PathNoise

    Returns
    -------
    end : PathEnd
    """
    (n, t), k = h.shape[:2], noise.n_paths

    def draw(law: GaussianTransition, step: int) -> Tensor:
        z = noise.shared[:, step].to(law.mean).repeat_interleave(n, 0)
        eps = noise.tokens(step, t).to(law.mean).repeat_interleave(n, 0)
        return law.sample(z, eps)

    # All paths start in the same state, so the first law is computed once.
    distance = path.observe(h, 0, context)
    law = path(h, 0, context, distance).tile(k)
    distance = None if distance is None else tile(distance, k)
    return _follow(path, law, distance, tiled_context, draw, k)


def _follow(
    path: GaussianPath,
    law: GaussianTransition,
    distance: Tensor | None,
    context: Context,
    draw: Draw,
    n_paths: int,
) -> PathEnd:
    """Go on from the law of the first step, and the distance of the state that it starts from."""

    def over_paths(x: Tensor) -> Tensor:
        return x.unflatten(0, (n_paths, -1)).mean(0)

    variances, distances, h = [], [distance], law.mean
    for step in range(path.n_steps):
        if step > 0:
            law = path(h, step, context, distances[-1])
        variances.append(over_paths(law.mean_variance()))
        h = draw(law, step)
        # The last state counts by its mean: the noise of its own step is no distance.
        observed = law.mean if step + 1 == path.n_steps else h
        distances.append(path.observe(observed, step + 1, context))
    mean_distance = path.mean_distance([None if d is None else over_paths(d) for d in distances])
    if mean_distance is None:
        mean_distance = variances[0].new_zeros(len(variances[0]))
    return PathEnd(h, torch.stack(variances, 1), mean_distance)


def propagate(
    path: GaussianPath,
    backbone: Backbone,
    batch: Batch,
    noise: PathNoise | None = None,
    look: ShowEmbedding | None = None,
) -> PathLogits:
    """Return the logits at the end of the path for a batch of n rows.

    Without noise the mean is followed, and K = 1. `look` is shown the embedding.
    """
    if noise is None:
        walk = MeanWalk(path, look)
        return walk.judge(backbone.walk(batch, walk))
    h, context = backbone.embed(batch)
    if look is not None:
        look(h, context)
    _, tiled = backbone.embed(tile_batch(batch, noise.n_paths))
    end = follow_samples(path, h, context, tiled, noise)
    logits = backbone.readout(end.state, tiled).unflatten(0, (noise.n_paths, len(h)))
    return PathLogits(logits, end.variance, end.distance)


def propagate_few(
    path: GaussianPath,
    backbone: Backbone,
    batch: Batch,
    n_rows: int,
    look: ShowEmbedding | None = None,
) -> PathLogits:
    """Follow the mean of the path for a few rows, and judge them among `n_rows` copies of them.

    The blocks work on many tokens per row, and may sum as they do for many rows. Readout and
    distances work on one vector per row: they get as many as in a chunk of `n_rows`.
    """
    h, context = backbone.embed(batch)
    walk = MeanWalk(path, look)
    for k in range(backbone.n_blocks):
        h = walk(k, h, context)
    copies = {v.device: _in_turn(len(h), n_rows, v.device) for v in (h, *batch.values())}
    many = {name: value[copies[value.device]] for name, value in batch.items()}
    h = h[copies[h.device]]
    return walk.judge(backbone.readout(h, Context(many, token_mask(many, h), calls=(), slots=())))


def _in_turn(n: int, n_copies: int, device: torch.device) -> Tensor:
    return torch.arange(n_copies, device=device) % n


def tile_batch(batch: Batch, k: int) -> Batch:
    """Repeat every tensor of a batch (n, ...) path by path, to (k * n, ...)."""
    return {name: tile(value, k) for name, value in batch.items()}


@torch.no_grad()
def mean_logits(mean: Mean, grid: Grid, backbone: Backbone, inputs: EncodedInputs) -> Tensor:
    """Return the logits (n, n_classes) of all rows at the end of a mean, on the CPU, float32."""
    ends = {stop - 1: (start, stop) for start, stop in steps_of(grid)}

    def step(k: int, h: Tensor, context: Context) -> Tensor:
        return mean(h, ends[k], context) if k in ends else h

    def of_batch(batch: Batch) -> tuple[Tensor]:
        return (backbone.walk(batch, step).float(),)

    (logits,) = map_rows(of_batch, inputs, backbone.device)
    return logits
