"""The tables of ``speed.py``."""

from rendering import Section

FORMATS = (0.1, "{:.3f}"), (10, "{:.2f}"), (float("inf"), "{:.0f}")


def sections(results):
    """Return a section for each part of the results."""
    texts = {
        "float32": "Seconds relative to the wrapped model's own loop on the same samples; in "
        "columns named after one row, to the model's on that row.",
        "bfloat16": "The same with both sides in bfloat16.",
        "fit": "In epochs of fine-tuning the wrapped model, and in forward passes of all samples.",
    }
    titles = {"float32": "Prediction", "bfloat16": "Prediction in bfloat16", "fit": "Fit"}
    timed = results[results["method"] != "operations"]
    counted = results[results["method"] == "operations"]
    found = [
        Section(titles[part], texts[part], pivot(timed[timed["part"] == part], "method"))
        for part in titles
        if (timed["part"] == part).any()
    ]
    if len(counted):
        wrapped = counted[counted["part"] == "wrapped"]
        numbers = "; ".join(
            f"{problem}: {rows['value'].iloc[0]:.0f}"
            for problem, rows in wrapped[wrapped["metric"] == "forward"].groupby("problem")
        )
        text = (
            "Operations dispatched per chunk of prediction and per training step, relative to a "
            f"forward pass of the wrapped model. Of that pass: {numbers}."
        )
        table = pivot(counted[counted["part"] != "wrapped"], "part")
        found.append(Section("Operations", text, table))
    return found


def pivot(results, rows):
    """Return one row per problem and method, one column per metric."""
    wide = results.pivot_table("value", ["problem", rows], "metric", sort=False)
    return wide.map(_number).reset_index().rename(columns={"problem": "model", rows: "method"})


def _number(value):
    if value != value:
        return ""
    return next(form for limit, form in FORMATS if abs(value) < limit).format(value)
