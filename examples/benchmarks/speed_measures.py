"""What is measured of one case: each unit returns lines (part, metric, value)."""

import copy
import inspect
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from unittest.mock import patch

import numpy as np
import torch
from methods import baseline, scikit_learn
from timing import Meter, best_seconds, operations, stage_seconds
from torch.nn import functional as F

from sklearn_diffuq import DiffusionCalibratedClassifier, _fit_path
from sklearn_diffuq._calibration.calibrator import Calibrator
from sklearn_diffuq._inputs.batching import training_batches
from sklearn_diffuq._path.covariance import NoiseScales
from sklearn_diffuq._propagation.margin_table import MomentTable
from sklearn_diffuq._transition.objective import PathObjective
from sklearn_diffuq._wrapped.backbone_classifier import BackboneClassifier

BATCH_SIZES = {"cpu": (1, 8, 64), "cuda": (64, 128, 256, 512)}
SCALES = NoiseScales(shared=0.1, token=0.03, distance=0.1)
N_TABLE = 256  # rows of the table of covariances, where a fit has found no noise
EPOCHS = 3  # one of each stage of the objective
STAGES = ("teacher forcing", "own states", "whole paths")
TIMED_STAGES = {
    "statistics": (_fit_path, "collect_statistics"),
    "start": (_fit_path, "unified_transition"),
    "training": (_fit_path, "train_transition"),
    "calibration": (Calibrator, "calibrate"),
}
INFERENCE = {
    "mean": {"inference": "mean"},
    "moments": {"inference": "moments"},
    "4 paths": {"inference": "sampling", "n_samples": 4},
    "16 paths": {"inference": "sampling", "n_samples": 16},
}
RIVALS = {
    "temperature": partial(scikit_learn, method="temperature"),
    "MC dropout, 16 passes": partial(baseline, name="MCDropoutClassifier", n_samples=16),
    "ensemble of 5": partial(baseline, name="DeepEnsembleClassifier", n_members=5, max_epochs=1),
    "last-layer Laplace": partial(baseline, name="LaplaceClassifier"),
    "SNGP": partial(baseline, name="SNGPClassifier"),
}
QUICK_RIVALS = ("temperature", "SNGP")


def units(size, quick):
    """Return method -> function of a case, in the order in which they are measured."""
    fits = {
        "blockwise": {"transition": "blockwise"},
        "S = L/2": {"half": True, "max_epochs": EPOCHS},
        "S = L": {"max_epochs": EPOCHS},
    }
    fits = {name: fits[name] for name in size.fits}
    if not size.is_fit_timed:
        fits["S = L/2"] |= {"max_epochs": 1, "rank": None}
        del fits["S = L"]
    found = {name: partial(_diffusion, size=size, **options) for name, options in fits.items()}
    rivals = {name: fit for name, fit in RIVALS.items() if not quick or name in QUICK_RIVALS}
    return found | {name: partial(_rival, fit=fit, size=size) for name, fit in rivals.items()}


class PlainLoop:
    """The evaluation loop of the wrapped model itself.

    Parameters
    ----------
    classifier : fitted TransformerClassifier or FTTransformerClassifier
    X : samples
    dtype : torch.dtype, default=None
        Precision of a copy of the model; None takes the model as it is.
    """

    def __init__(self, classifier, X, dtype=None):
        module = classifier.backbone_.module
        self.module = (module if dtype is None else copy.deepcopy(module).to(dtype)).eval()
        self.device, self.dtype = classifier.backbone_.device, dtype
        self.inputs = classifier.encode(X)
        n = np.arange(len(self.inputs))
        self.order = n if self.inputs.lengths is None else np.argsort(self.inputs.lengths)
        known = inspect.signature(module.forward).parameters
        self.by_name = set(self.inputs.names) <= set(known)

    def batch(self, rows):
        """Return a batch on the device, floats in the precision of the model."""
        batch = self.inputs.batch(rows, device=self.device)
        if self.dtype is None:
            return batch
        return {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in batch.items()}

    def logits(self, batch):
        """Return the logits of a batch."""
        out = self.module(**batch) if self.by_name else self.module(*batch.values())
        return getattr(out, "logits", out)

    @torch.no_grad()
    def __call__(self, batch_size):
        """Run over all samples."""
        for start in range(0, len(self.order), batch_size):
            batch = self.batch(self.order[start : start + batch_size])
            self.logits(batch).float().softmax(-1).cpu()

    def at_best(self, seconds=1.0):
        """Return the loop at its best batch size."""
        smallest, *others = BATCH_SIZES[self.device.type]
        sizes = [smallest, *(n for n in others if n <= len(self.order))]
        if len(sizes) == 1:
            return partial(self, smallest)
        timed = best_seconds({n: partial(self, n) for n in sizes}, seconds, at_least=2, at_most=3)
        return partial(self, min(timed, key=timed.get))


@contextmanager
def encoded_once():
    """Encode each object of samples once: encoding is not what is compared."""
    encode, kept = BackboneClassifier.encode, {}

    def cached(self, X):
        key = id(self._encoder), id(X)
        if key not in kept:
            kept[key] = X, encode(self, X)  # X too, so that no other object gets its id
        return kept[key][1]

    with patch.object(BackboneClassifier, "encode", cached):
        yield


def with_noise(classifier):
    """Set the noise of a fitted diffusion, in place, to the same scales for every fit."""
    for inference, found in classifier.calibration_.items():
        if inference == "mean":
            continue
        table = found.table
        if inference == "moments" and table is None:
            k = min(len(classifier.classes_), 10)
            rng = torch.Generator().manual_seed(0)
            margins = -torch.rand(N_TABLE, k - 1, generator=rng, dtype=torch.float64).cumsum(1)
            table = MomentTable(
                margins, 0.1 * torch.eye(k, dtype=torch.float64).repeat(N_TABLE, 1, 1)
            )
        classifier.calibration_[inference] = replace(found, scales=SCALES, table=table)
        assert classifier.calibration_[inference].has_noise
    return classifier


@lru_cache(maxsize=1)
def finetuning_epoch(case):
    """Fine-tune a copy of the wrapped model for one epoch; return the seconds and the MiB."""
    loop = PlainLoop(case.wrapped, case.train[0], torch.float32)
    device, y = loop.device, torch.as_tensor(np.unique(case.train[1], return_inverse=True)[1])
    loop.module.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(loop.module.parameters(), lr=1e-6)
    batch_size = case.options["batch_size"]
    batches = training_batches(loop.inputs, batch_size, np.random.default_rng(0))

    def step(rows):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = loop.logits(loop.batch(rows))
        F.cross_entropy(logits.float(), y[rows].to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()

    step(batches[0][:8])  # the first call of a kernel takes longer
    with Meter() as meter:
        for rows in batches:
            step(rows)
    return meter


@lru_cache(maxsize=1)
def forward_of_all(case):
    """Return the seconds of one forward pass of all samples that a fit is given."""
    loops = [PlainLoop(case.wrapped, X).at_best() for X, _ in (case.train, case.held_out)]
    return sum(best_seconds(dict(enumerate(loops)), at_most=3).values())


def fitted(case, *, half=False, **options):
    """Return a fitted diffusion, and the seconds and the MiB of the fit in parts."""
    options = {**case.options, **options}
    if half:
        options["n_steps"] = case.wrapped.backbone_.n_blocks // 2
    classifier = DiffusionCalibratedClassifier(case.frozen, **options)
    (X, y), (X_held, y_held) = case.train, case.held_out
    with stage_seconds(TIMED_STAGES) as seconds, Meter() as meter:
        classifier.fit(X, y, X_calibration=X_held, y_calibration=y_held)
    return classifier, {**seconds, "whole": meter.seconds}, meter.mib


def _diffusion(case, *, size, **options):
    """Measure the fit and the predictions of a diffusion."""
    with encoded_once():
        if size.is_fit_timed:
            unit, forward = finetuning_epoch(case), forward_of_all(case)
        classifier, seconds, mib = fitted(case, **options)
        if size.is_fit_timed:
            if classifier.history_:
                seconds["one epoch"] = seconds["training"] / len(classifier.history_)
            for part, value in seconds.items():
                yield "fit", part, value / unit.seconds
            yield "fit", "whole, in forwards", seconds["whole"] / forward
            if torch.cuda.is_available():  # elsewhere memory is kept for the next use
                yield "fit", "peak memory", mib / unit.mib
        with_noise(classifier)
        yield from _predictions(case, classifier, size.seconds)


def _predictions(case, classifier, seconds):
    """Measure the predictions of a diffusion, in every precision that the device is good for."""
    precisions = {"float32": None}
    if case.wrapped.backbone_.device.type == "cuda":
        precisions["bfloat16"] = torch.bfloat16
    few = case.X[: max(len(case.X) // 4, 1)]  # many paths take long
    for precision, dtype in precisions.items():
        kinds = {
            name: copy.copy(classifier).set_params(precision=precision, **then)
            for name, then in INFERENCE.items()
        }
        for X, names in ((case.X, ("mean", "moments")), (few, ("4 paths", "16 paths"))):
            loop = PlainLoop(case.wrapped, X, dtype).at_best()
            calls = {name: partial(kinds[name].predict_proba, X) for name in names}
            yield from _relative(precision, calls, loop, seconds)
        one = case.X[:1]
        loop = PlainLoop(case.wrapped, one, dtype).at_best()
        calls = {f"one row, {name}": partial(kinds[name].predict_proba, one)
                 for name in ("mean", "moments")}  # fmt: skip
        yield from _relative(precision, calls, loop, seconds)


def _relative(part, calls, loop, seconds):
    """Time calls and the wrapped model's loop in turn, after one run of each."""
    for call in calls.values():
        call()
    best = best_seconds({"wrapped": loop, **calls}, seconds, at_least=2)
    for name in calls:
        yield part, name, best[name] / best["wrapped"]


def _rival(case, *, fit, size):
    """Measure another method."""
    with encoded_once():
        unit = finetuning_epoch(case).seconds if size.is_fit_timed else np.nan
        with Meter() as meter:
            classifier = fit(case.frozen, case.train, case.held_out, 0)
        yield "fit", "whole", meter.seconds / unit
        for name, X in (("predict", case.X), ("one row", case.X[:1])):
            loop = PlainLoop(case.wrapped, X).at_best()
            calls = {name: partial(classifier.predict_proba, X)}
            yield from _relative("float32", calls, loop, size.seconds)


def count_operations(case):
    """Count the operations of prediction and training, relative to the wrapped model's."""
    rows = np.arange(8)
    X = case.X[np.zeros(8, dtype=int)]  # one length: one chunk
    with encoded_once():
        plain = PlainLoop(case.wrapped, case.X)
        batch = plain.batch(rows)  # of several lengths, so that there is a mask
        with torch.no_grad():
            forward = operations(partial(plain.logits, batch))
        yield "wrapped", "forward", forward
        block = _block_operations(case.wrapped.backbone_, batch)
        yield "wrapped", "forward and backward of one block", block
        for name, options in {
            "blockwise": {"transition": "blockwise"},
            "S = L/2": {"half": True, "max_epochs": EPOCHS, "rank": 4},
            "S = L": {"max_epochs": EPOCHS, "rank": 4},
        }.items():
            with captured_objective() as objectives:
                classifier = with_noise(fitted(case, **options)[0])
            for kind, then in INFERENCE.items():
                predictor = copy.copy(classifier).set_params(**then)
                predictor.predict_proba(X)
                count = operations(partial(predictor.predict_proba, X))
                yield name, kind, count / forward
            for objective in objectives[:1]:
                yield from _training_operations(name, objective, forward, block)


def _block_operations(backbone, batch):
    with backbone.frozen():
        with torch.no_grad():
            h, context = backbone.embed(batch)
        h = h.detach().requires_grad_()
        parameters = list(backbone.blocks[0].parameters())
        flags = [p.requires_grad for p in parameters]
        for p in parameters:
            p.requires_grad_(True)
        count = operations(lambda: backbone.block(0, h, context).sum().backward())
        for p, flag in zip(parameters, flags, strict=True):
            p.grad = None
            p.requires_grad_(flag)
    return count


@contextmanager
def captured_objective():
    """Yield a list that gets the objective of every fit in the block."""
    init, found = PathObjective.__init__, []

    def keep(self, *args, **kwargs):
        init(self, *args, **kwargs)
        found.append(self)

    with patch.object(PathObjective, "__init__", keep):
        yield found


def _training_operations(name, objective, forward, block):
    """Count a training step of each stage, without that of the optimiser."""
    objective.transition.train().requires_grad_(True)
    rows = np.arange(min(len(objective.training), 16))
    for epoch, stage in enumerate(STAGES):
        generator = torch.Generator(objective.backbone.device).manual_seed(0)

        def step(epoch=epoch, generator=generator):
            return objective(rows, epoch, generator)["loss"]

        with objective.backbone.frozen():
            alone = operations(step)
            both = operations(lambda step=step: step().backward())
        yield name, f"{stage}, forward", alone / forward
        yield name, f"{stage}, forward and backward", both / forward
        if epoch == 0:
            yield name, f"{stage}, of a forward and one block's", both / (forward + block)
