"""The path as JSON and tensors, and back."""

from dataclasses import asdict

import torch

from sklearn_diffuq._backbones.backbone import backbone_device
from sklearn_diffuq._calibration.noise_scales import Calibration
from sklearn_diffuq._path.attention_covariance import AttentionVariance
from sklearn_diffuq._path.covariance import NoiseScales, StateCovariance
from sklearn_diffuq._path.distance import GaussianProcessVariance
from sklearn_diffuq._path.path import BlockwiseMean, GaussianPath
from sklearn_diffuq._path.time_grid import time_grid
from sklearn_diffuq._persistence.wrapped_state import part
from sklearn_diffuq._propagation.margin_table import MomentTable
from sklearn_diffuq._transition.unified_transition import UnifiedTransition

# The path ---------------------------------------------------------------------------------------


def _path_state(path):
    covariance = path.covariance
    config = {"intervals": covariance.intervals, "blocks": [int(b) for b in covariance.processes]}
    tensors = {f"covariance.{k}": v for k, v in covariance.state_dict().items()}
    if isinstance(path.mean, UnifiedTransition):
        n_shared_blocks = max(path.mean.group) + 1
        config["transition"] = {"rank": path.mean.rank, "n_shared_blocks": n_shared_blocks}
        tensors |= {f"transition.{k}": v for k, v in path.mean.state_dict().items()}
    return config, tensors


def _load_path(config, tensors, backbone):
    intervals = tuple(map(tuple, config["intervals"]))
    if "transition" in config:
        state = part(tensors, "transition")
        mean = _load_transition(state, backbone, intervals, **config["transition"])
    else:
        mean = BlockwiseMean(backbone, time_grid(backbone.n_blocks, backbone.n_blocks))
    covariance = _load_covariance(part(tensors, "covariance"), intervals, config["blocks"])
    return GaussianPath(mean, covariance).to(backbone_device(backbone))


def _load_transition(state, backbone, intervals, rank, n_shared_blocks):
    # zeros without memory: the constructor takes nothing but the shape of the matrices
    matrices = {
        name.replace("/", "."): torch.zeros(()).expand(len(intervals), *value.shape[1:])
        for name, value in part(state, "shared").items()
    }
    vectors = {name.replace("/", "."): v for name, v in part(state, "vectors").items()}
    transition = UnifiedTransition(intervals, matrices, vectors, backbone, rank, n_shared_blocks)
    transition.load_state_dict(state)
    return transition.requires_grad_(False)


def _load_covariance(state, intervals, blocks):
    processes = {b: _load_process(part(state, f"processes.{b}")) for b in blocks}
    ordinary = {b: state[f"ordinary_{b}"] for b in blocks}
    factors, token_variances = state["factors"], state["token_variances"]
    return StateCovariance(intervals, factors, token_variances, processes, ordinary)


def _load_process(state):
    if "query_weight" in state:
        n_heads = len({name.split(".")[1] for name in state if name.startswith("heads.")})
        names = ("query_weight", "query_bias", "norm_weight", "norm_bias", "norm_eps")
        heads = [_load_process(part(state, f"heads.{i}")) for i in range(n_heads)]
        return AttentionVariance(*(state.get(name) for name in names), heads)
    process = GaussianProcessVariance(state["states"][:2])  # its own inverse is not needed
    for name, value in state.items():
        setattr(process, name, value)
    return process


def _calibration_state(calibrations):
    config, tensors = {}, {}
    for n_steps, kinds in calibrations.items():
        config[n_steps] = {}
        for kind, c in kinds.items():
            config[n_steps][kind] = {
                "scales": asdict(c.scales), "temperature": c.temperature, "nll": c.nll
            }  # fmt: skip
            if c.table is not None:
                for name in ("margins", "covariance"):
                    tensors[f"{n_steps}.{kind}.{name}"] = getattr(c.table, name)
    return config, tensors


def _load_calibrations(config, tensors):
    calibrations = {}
    for n_steps, kinds in config.items():
        calibrations[int(n_steps)] = {}
        for kind, c in kinds.items():
            table = part(tensors, f"{n_steps}.{kind}")
            calibrations[int(n_steps)][kind] = Calibration(
                NoiseScales(**c["scales"]),
                c["temperature"],
                c["nll"],
                MomentTable(**table) if table else None,
            )
    return calibrations
