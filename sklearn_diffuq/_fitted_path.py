"""The fitted path: what `fit_path` returns, predictions use and `save` writes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._calibration.calibration import Calibration
from sklearn_diffuq._calibration.predict import CalibratedPath
from sklearn_diffuq._inputs.few_rows import FewRows
from sklearn_diffuq._path.attention_covariance import AttentionVariance
from sklearn_diffuq._path.covariance import StateCovariance
from sklearn_diffuq._path.distance import GaussianProcessVariance, StateProcess
from sklearn_diffuq._path.embedding_shift import EmbeddingMoments
from sklearn_diffuq._path.mean import BlockwiseMean, Mean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.time_grid import Grid
from sklearn_diffuq._state import State
from sklearn_diffuq._transition.unified_transition import UnifiedTransition

# What a saved path may consist of, by the kind it was saved under.
MEANS: Mapping[str, Callable[[State, Backbone], Mean]] = MappingProxyType(
    {kind.kind: kind.from_state for kind in (BlockwiseMean, UnifiedTransition)}
)
PROCESSES: Mapping[str, Callable[[State], StateProcess]] = MappingProxyType(
    {kind.kind: kind.from_state for kind in (GaussianProcessVariance, AttentionVariance)}
)


@dataclass(frozen=True)
class FittedPath:
    """A path, its calibration for several numbers of steps, and how it came about.

    Attributes
    ----------
    path : GaussianPath
        On the first of the grids; it knows the steps of all.
    grids : dict from int to tuple of int
        Number of steps -> time grid.
    calibrations : dict from int to dict from {"mean", "moments", "sampling"} to Calibration
        Number of steps -> kind of inference -> calibration.
    history : list of dict
        One entry per epoch of training.
    seed : int
        Of the paths drawn at prediction.
    embedding : EmbeddingMoments or None
        Of the training rows; None if they were few, or saved by an earlier version.
    said : set of str
        Warnings that are given once per fit, and have been.
    few : FewRows
        What is known of chunks of few rows.
    """

    path: GaussianPath
    grids: dict[int, Grid]
    calibrations: dict[int, dict[str, Calibration]]
    history: list[dict[str, Any]]
    seed: int
    embedding: EmbeddingMoments | None = None
    said: set[str] = field(default_factory=set, repr=False, compare=False)
    few: FewRows = field(default_factory=FewRows, repr=False, compare=False)

    def on(self, n_steps: int) -> GaussianPath:
        """Return the path on the time grid of a number of steps."""
        return self.path.on(self.grids[n_steps])

    def n_parameters(self, n_steps: int, inference: str) -> int:
        """Return how many numbers predictions need of the path.

        Those of its mean, and where noise or distances count the states that distances are
        measured from, their matrices, and the table of moments.
        """
        calibration, size = self.calibrations[n_steps][inference], 0
        if calibration.scales.any_noise or calibration.scales.distance > 0:
            size = sum(buffer.numel() for buffer in self.path.covariance.buffers())
        if calibration.table is not None and inference == "moments":
            size += calibration.table.margins.numel() + calibration.table.covariance.numel()
        return self.path.mean.n_parameters(self.grids[n_steps]) + size

    def calibrated(
        self,
        n_steps: int,
        inference: str,
        n_samples: int,
        seed: int | None = None,
        *,
        mixed: bool = False,
    ) -> CalibratedPath:
        """Return the path as it is to be followed; None takes the seed of the fit."""
        return CalibratedPath(
            self.on(n_steps),
            self.calibrations[n_steps][inference],
            inference,
            n_samples,
            self.seed if seed is None else seed,
            mixed,
            self.few,
        )

    def to_state(self) -> State:
        """Return all that belongs to the path, and nothing of the wrapped model."""
        mean, covariance = self.path.mean, self.path.covariance
        config = {
            "mean_kind": mean.kind,
            "grids": [list(grid) for grid in self.grids.values()],
            "history": self.history,
            "seed": self.seed,
        }
        calibrations = {
            str(n): State({}).with_parts(**{kind: c.to_state() for kind, c in kinds.items()})
            for n, kinds in self.calibrations.items()
        }
        parts = {} if self.embedding is None else {"embedding": self.embedding.to_state()}
        return State(config).with_parts(
            **parts,
            mean=mean.to_state(),
            covariance=covariance.to_state(),
            calibration=State({}).with_parts(**calibrations),
        )

    @classmethod
    def from_state(cls, state: State, backbone: Backbone) -> "FittedPath":
        """Build the fitted path that `to_state` described, on the device of the backbone."""
        config = state.config
        mean = MEANS[config["mean_kind"]](state.part("mean"), backbone)
        covariance = state.part("covariance")
        process_of = PROCESSES[covariance.config["process"]]
        grids = {len(grid) - 1: tuple(grid) for grid in config["grids"]}
        path = GaussianPath(
            mean,
            StateCovariance.from_state(covariance, process_of),
            next(iter(grids.values())),
        )
        saved = state.part("calibration")
        calibrations = {
            n: {
                kind: Calibration.from_state(saved.part(str(n)).part(kind))
                for kind in saved.config[str(n)]
            }
            for n in grids
        }
        path = path.to(backbone.device)
        embedding = EmbeddingMoments.from_state(state.part("embedding"))
        if embedding is not None:
            embedding.to(backbone.device)
        return cls(path, grids, calibrations, config["history"], config["seed"], embedding)
