"""The tables of ``speed.py``."""

from rendering import Section

FORMATS = (0.1, "{:.3f}"), (10, "{:.2f}"), (float("inf"), "{:.0f}")


LOOP = "the wrapped model's own loop on the same samples"
# Part of the results -> title, text, and which column names the rows beside the model.
PARTS = {
    "float32": (
        "Prediction",
        f'Seconds relative to {LOOP}; for one row alone, to the model\'s on that row. "predict" is '
        "what another method has instead of kinds of inference.",
    ),
    "bfloat16": ("Prediction in bfloat16", "The same with both sides in bfloat16."),
    "fit": (
        "Fit",
        "In epochs of fine-tuning the wrapped model, and the whole also in forward passes of all "
        "samples of the fit. Peak memory is relative to fine-tuning.",
    ),
    "decoder": ("Decoder", "Seconds and the highest memory of each part, with the model."),
    "linear": (
        "Growth with rows, steps and paths",
        "Seconds per row, step and path relative to those at the smallest size: 1 is linear.",
    ),
    "memory": ("Memory of many rows", "Added by one call, beside the rows themselves."),
    "threads": ("README example: seconds on the wall", "Without OMP_NUM_THREADS, or with it at 1."),
    "processor": ("README example: seconds of the processor", "Of all threads."),
    "pools": ("README example: threads", "In each pool."),
}


def sections(results):
    """Return a section for each part that the results have."""
    is_count = results["method"] == "operations"
    found = [
        Section(title, text, pivot(rows, "method"))
        for part, (title, text) in PARTS.items()
        if len(rows := results[(results["part"] == part) & ~is_count])
    ]
    counted = results[is_count & (results["part"] != "wrapped")]
    if len(counted):
        passes = results[is_count & (results["metric"] == "forward")]
        numbers = zip(passes["problem"], passes["value"], strict=True)
        text = (
            "Dispatched per chunk of prediction and per training step, relative to a forward pass "
            "of the wrapped model, which takes "
            + ", ".join(f"{value:.0f} ({problem})" for problem, value in numbers)
            + ' operations. "4 paths" are one batch.'
        )
        found.append(Section("Operations", text, pivot(counted, "part")))
    return found


def pivot(results, rows):
    """Return one row per problem and method, one column per metric."""
    wide = results.pivot_table("value", ["problem", rows], "metric", sort=False)
    return wide.map(_number).reset_index().rename(columns={"problem": "model", rows: "method"})


def _number(value):
    if value != value:
        return ""
    return next(form for limit, form in FORMATS if abs(value) < limit).format(value)
