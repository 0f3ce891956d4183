"""Reading what earlier versions have written."""

from typing import Any

from sklearn_diffuq._persistence.wrapped_state import upgrade_wrapped
from sklearn_diffuq._state import State
from sklearn_diffuq._transition.closed_form_start import shared_groups


def upgrade(state: State) -> State:
    """Return a state of format version 1 as one of version 2."""
    config = state.config
    mean_kind, mean = _mean(state)
    kept = {name: config[name] for name in ("params", "estimator_given_as", "classes")}
    fitted = State(
        {
            "mean_kind": mean_kind,
            "grids": config["grids"],
            "history": config["history"],
            "seed": config["seed"],
        }
    ).with_parts(mean=mean, covariance=_covariance(state), calibration=_calibrations(state))
    kept["params"] = _known_parameters(kept["params"])
    return State(kept).with_parts(wrapped=upgrade_wrapped(state.part("wrapped")), fitted=fitted)


def _known_parameters(params: dict[str, Any]) -> dict[str, Any]:
    """Replace values that are no longer known."""
    gone = {("readout", "finetune"): "auto", ("covariance", "residual"): "gp"}
    known = dict(params)
    for (name, value), present in gone.items():
        if known[name] == value:
            known[name] = present
    return known


def _mean(state: State) -> tuple[str, State]:
    path = state.config["path"]
    if "transition" not in path:
        return "blockwise", State({})
    config = {
        "intervals": path["intervals"],
        "rank": path["transition"]["rank"],
        "group": _groups(state.config),
    }
    return "unified", State(config, state.part("path").part("transition").tensors)


def _groups(config: dict[str, Any]) -> list[int]:
    """Return which shared matrices each step uses; version 1 wrote only how many there are."""
    intervals = [tuple(interval) for interval in config["path"]["intervals"]]
    n_blocks, transition = config["n_blocks"], config["path"]["transition"]
    if transition["rank"] is None:
        return [0] * len(intervals)  # every step has its own matrices

    def groups(n_shared_blocks: int) -> tuple[int, ...]:
        return tuple(shared_groups(intervals, n_blocks, n_shared_blocks))

    n_shared = transition["n_shared_blocks"]
    possible = {groups(n) for n in range(1, 2 * n_blocks + 1) if max(groups(n)) + 1 == n_shared}
    told = groups(config["params"]["n_shared_blocks"])
    if told in possible:
        return list(told)
    if len(possible) == 1:
        return list(possible.pop())
    raise ValueError(
        f"The saved transition has {n_shared} shared blocks for {len(intervals)} steps, and format "
        "version 1 does not say which steps share one. Fit and save it again."
    )


def _covariance(state: State) -> State:
    path, saved = state.config["path"], state.part("path").part("covariance")
    tensors = {name: saved.tensors[name] for name in ("factors", "token_variances")}
    processes = {}
    for i, block in enumerate(path["blocks"]):
        tensors[f"ordinary.{i}"] = saved.tensors[f"ordinary_{block}"]
        processes[str(i)] = saved.part("processes").part(str(block))
    is_attention = any("query_weight" in process.tensors for process in processes.values())
    config = {
        "intervals": path["intervals"],
        "blocks": path["blocks"],
        "process": "attention" if is_attention else "states",
    }
    return State(config, tensors).with_parts(processes=State({}).with_parts(**processes))


def _calibrations(state: State) -> State:
    saved = state.part("calibration")
    by_steps = {}
    for n_steps, kinds in saved.config.items():
        parts = {}
        for kind, numbers in kinds.items():
            table = State({}, saved.part(n_steps).part(kind).tensors)
            calibration = State(numbers)
            parts[kind] = calibration.with_parts(table=table) if table.tensors else calibration
        by_steps[n_steps] = State({}).with_parts(**parts)
    return State({}).with_parts(**by_steps)
