"""The documentation is checked: docstrings, stated defaults, README code, completeness."""

import ast
import contextlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpydoc.docscrape import FunctionDoc
from numpydoc.validate import validate

import sklearn_diffuq

ROOT = Path(__file__).resolve().parents[1]
SUBPACKAGES = ("baselines", "datasets", "exceptions", "metrics")
CLASSES = [name for name in sklearn_diffuq.__all__ if name not in SUBPACKAGES]

# numpydoc's codes that this package's style does not follow.
IGNORED = {
    "ES01",  # an extended summary is written where there is something to say
    "GL01",  # the summary starts on the line of the opening quotes
    "GL02",
    "GL03",  # blank lines inside the list of attributes of a Bunch
    "RT02",  # results are named
    "SA04",  # See Also of a method of the same class needs no description
    "YD01",
}
IGNORED_IN_METHODS = {"EX01", "SA01"}


def subpackage_objects():
    """Yield "module.name" for every public name of the subpackages."""
    for subpackage in SUBPACKAGES:
        module = getattr(sklearn_diffuq, subpackage)
        yield from (f"sklearn_diffuq.{subpackage}.{name}" for name in module.__all__)


PUBLIC = [f"sklearn_diffuq.{name}" for name in CLASSES] + sorted(subpackage_objects())


def resolve(path):
    value = sklearn_diffuq
    for name in path.split(".")[1:]:
        value = getattr(value, name)
    return value


def own_methods(path):
    """Return the paths of the public methods and properties that a class of ours defines."""
    cls = resolve(path)
    if not inspect.isclass(cls):
        return []
    names = {
        name
        for base in cls.__mro__
        if base.__module__.startswith("sklearn_diffuq")
        for name, value in vars(base).items()
        if not name.startswith("_")
        and isinstance(value, property | staticmethod | classmethod | type(own_methods))
        # Metadata routing adds these to the class; scikit-learn documents them.
        and not re.fullmatch(r"set_\w+_request", name)
    }
    return [f"{path}.{name}" for name in sorted(names)]


def documented_defaults(text):
    """Return name -> default as written in the Parameters section."""
    found = {}
    for parameter in FunctionDoc(None, doc=inspect.cleandoc(text))["Parameters"]:
        match = re.search(r"default\s*=\s*(.+)$", parameter.type)
        for name in parameter.name.split(","):
            found[name.strip()] = match.group(1).strip() if match else None
    return found


def literal(text):
    """Return the value that `text` writes, so that 1e-3 is 0.001; other text as it is."""
    try:
        return repr(ast.literal_eval(text))
    except (SyntaxError, TypeError, ValueError):
        return text


@pytest.mark.parametrize("path", PUBLIC)
def test_docstrings_follow_numpydoc(path):
    wrong = []
    for target in [path, *own_methods(path)]:
        ignored = IGNORED | (IGNORED_IN_METHODS if target != path else set())
        if path.startswith("sklearn_diffuq.exceptions"):
            ignored = ignored | IGNORED_IN_METHODS
        errors = validate(target)["errors"]
        wrong += [f"{target}: {code} {text}" for code, text in errors if code not in ignored]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", PUBLIC)
def test_documented_defaults_are_those_of_the_signature(path):
    wrong = []
    for target in [path, *own_methods(path)]:
        value = resolve(target)
        if not callable(value) or (inspect.isclass(value) and issubclass(value, Exception)):
            continue
        documented = documented_defaults(value.__doc__)
        for name, parameter in inspect.signature(value).parameters.items():
            if name not in documented or parameter.kind is parameter.VAR_KEYWORD:
                continue
            has_default = parameter.default is not parameter.empty
            expected = repr(parameter.default) if has_default else None
            if literal(documented[name]) != literal(expected):
                wrong.append(
                    f"{target}({name}): documented {documented[name]}, signature {expected}"
                )
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", PUBLIC)
def test_the_reference_is_complete(path):
    reference = (ROOT / "doc" / "api.rst").read_text(encoding="utf-8")
    module, name = path.rsplit(".", 1)
    section = reference.split(f".. currentmodule:: {module}\n", 1)
    assert len(section) == 2, f"doc/api.rst has no section for {module}"
    entries = section[1].split(".. currentmodule::")[0].split()
    assert name in entries


def test_readme_code_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert blocks
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as in all tests, see conftest.py
    code = "\n".join(blocks)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=one_thread)


def equations(text, pattern):
    return {number for found in re.findall(pattern, text) for number in found.split(", ")}


def test_equations_of_the_guide_and_of_the_code_are_the_same():
    guide = (ROOT / "doc" / "user_guide" / "method.rst").read_text(encoding="utf-8")
    code = "".join(path.read_text("utf-8") for path in (ROOT / "sklearn_diffuq").rglob("*.py"))
    numbers = r"[Ee]qs?\. (\d+\.\d+(?:, \d+\.\d+)*)"
    assert equations(code, numbers) == equations(guide, r"\\tag\{([\d.]+)\}")


def test_constants_of_the_guide_have_the_values_of_the_code():
    guide = (ROOT / "doc" / "user_guide" / "method.rst").read_text(encoding="utf-8")
    listed = re.findall(r"\* - ``(\w+)``\n      - (.+)\n", guide[guide.index("8. Constants") :])
    values = {}
    for path in (ROOT / "sklearn_diffuq").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                with contextlib.suppress(ValueError):
                    values[node.targets[0].id] = ast.literal_eval(node.value)
    checked = 0
    for name, text in listed:
        stated = [float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", text)]
        value = values.get(name)
        if isinstance(value, int | float | tuple):
            assert stated == list(np.atleast_1d(value)), name
            checked += 1
    assert checked > 25
