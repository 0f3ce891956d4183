"""The shape of the code: who may import what, and how long a file and a function may be."""

import ast
import graphlib
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

import sklearn_diffuq

PACKAGE = Path(sklearn_diffuq.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

# Heavy library -> the only files that may import it.
OWNERS = {
    "laplace": ["baselines/_laplace.py"],
    "skorch": ["_training.py"],
    "safetensors": ["_persistence.py"],
    "matplotlib": ["metrics/_axes.py", "metrics/_*display*.py"],
}
# Too heavy, or not always needed: imported where they are used.
LAZY = ("transformers", "timm", "matplotlib", "laplace")
# The core, stage by stage. A file knows its own layer and the layers above it in this list.
CORE = [
    {"_inputs", "_training", "backbones"},
    {"_path", "_covariance", "_attention", "_statistics"},
    {"_transition", "_propagation"},
    {"_moments", "_perturbation"},
    {"_objective", "_calibration"},
    {"_transition_fitting"},
    {"_fitting"},
    {"_prediction"},
]
# The wrapped models as classifiers; the core does not know them, nor do they know the core.
WRAPPED = {
    "_backbone_classifier",
    "_encoders",
    "_ft_classifier",
    "_loading",
    "_readout",
    "_tables",
    "_transformers",
}
# Where the two meet, in order.
MEETING = [
    {"_wrapping", "_saved_model", "_predictor"},
    {"_persistence", "baselines"},
    {"_classifier"},
    {"_step_curve"},
]
BESIDE = {"datasets", "exceptions", "metrics"}
# File or folder -> libraries it must know nothing about.
FORBIDDEN = {
    "metrics/": ("torch", "skorch", "transformers", "timm"),
    "datasets/": ("torch", "skorch", "transformers", "timm"),
    "_path.py": ("sklearn",),
    "_covariance.py": ("sklearn",),
    "_attention.py": ("sklearn",),
    "_statistics.py": ("sklearn",),
    "_transition.py": ("sklearn",),
    "_propagation.py": ("sklearn",),
    "_moments.py": ("sklearn",),
    "_perturbation.py": ("sklearn",),
    "_objective.py": ("sklearn",),
    "_prediction.py": ("sklearn",),
}


@dataclass(frozen=True)
class Import:
    module: str
    in_function: bool
    line: int

    def is_from(self, package):
        return self.module == package or self.module.startswith(package + ".")


def imports_of(path):
    """Return every import of a file; ``from a import b`` counts as ``a.b``."""
    found = []

    def visit(node, in_function):
        if isinstance(node, ast.Import):
            found.extend(Import(name.name, in_function, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} has a relative import"
            found.extend(
                Import(f"{node.module}.{name.name}", in_function, node.lineno)
                for name in node.names
            )
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text(encoding="utf-8")), in_function=False)
    return found


IMPORTS = {name: imports_of(path) for name, path in FILES.items()}


@pytest.mark.parametrize("library", OWNERS)
def test_a_heavy_library_has_one_owner(library):
    users = [name for name, found in IMPORTS.items() if any(i.is_from(library) for i in found)]
    assert not [u for u in users if not any(fnmatch(u, owner) for owner in OWNERS[library])]


@pytest.mark.parametrize("library", LAZY)
def test_a_heavy_library_is_imported_inside_functions(library):
    eager = [
        f"{name}:{i.line}"
        for name, found in IMPORTS.items()
        for i in found
        if i.is_from(library) and not i.in_function
    ]
    assert not eager


def part_of(name):
    """Return the file or subpackage that a file (``a/b.py``) or a module (``a.b``) belongs to."""
    return name.removesuffix(".py").replace("/", ".").split(".")[0]


def known_to():
    """Return part -> the parts of the package that it may import."""
    known, core = {}, set()
    for layer in CORE:
        core |= layer
        known |= dict.fromkeys(layer, core | BESIDE)
    known |= dict.fromkeys(WRAPPED, WRAPPED | CORE[0] | BESIDE)
    known |= {part: {"exceptions"} for part in CORE[0] | BESIDE}
    known = {part: parts | {part} for part, parts in known.items()}
    below = core | WRAPPED | BESIDE
    for layer in MEETING:
        known |= {part: below | {part} for part in layer}
        below = below | layer
    return known


def test_every_file_has_a_place():
    parts = {part_of(name) for name in FILES} - {"__init__"}
    assert parts <= set(known_to())


def test_a_stage_does_not_know_what_comes_later():
    known = known_to()
    wrong = [
        f"{name}:{i.line} imports {i.module}"
        for name, found in IMPORTS.items()
        if name != "__init__.py"
        for i in found
        if i.is_from("sklearn_diffuq")
        and part_of(i.module.removeprefix("sklearn_diffuq.")) not in known[part_of(name)]
        and (name, i.module) != ("_persistence.py", "sklearn_diffuq")  # for the version
    ]
    assert not wrong


@pytest.mark.parametrize("place", FORBIDDEN)
def test_some_parts_do_without_a_library(place):
    wrong = [
        f"{name}:{i.line} imports {i.module}"
        for name, found in IMPORTS.items()
        if name.startswith(place)
        for i in found
        if any(i.is_from(library) for library in FORBIDDEN[place])
    ]
    assert not wrong


def test_imports_within_the_package_form_no_cycle():
    modules = {
        "sklearn_diffuq." + name.removesuffix(".py").replace("/", "."): found
        for name, found in IMPORTS.items()
        if not name.endswith("__init__.py")
    }
    graph = {
        name: {other for other in modules if any(i.is_from(other) for i in found)}
        for name, found in modules.items()
    }
    # What comes through the front of a subpackage depends on all of it.
    for name, found in modules.items():
        for front in ("sklearn_diffuq.backbones", "sklearn_diffuq.metrics"):
            if not name.startswith(front) and any(i.is_from(front) for i in found):
                graph[name] |= {other for other in modules if other.startswith(front + ".")}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "module",
    [
        "sklearn_diffuq",
        "sklearn_diffuq.baselines",
        "sklearn_diffuq.datasets",
        "sklearn_diffuq.metrics",
    ],
)
def test_importing_loads_no_deep_learning_library(module):
    code = (
        f"import sys, {module}; "
        "heavy = {'torch', 'transformers', 'timm', 'matplotlib', 'skorch', 'safetensors'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_found_and_listed():
    for name in sklearn_diffuq.__all__:
        assert getattr(sklearn_diffuq, name).__name__.endswith(name)
        assert name in dir(sklearn_diffuq)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = sklearn_diffuq.Nothing


def test_there_is_no_drawer():
    names = {path.stem.strip("_") for path in FILES.values()}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc", "tools"}


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_are_short(name):
    text = FILES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    too_long = {
        node.name: _n_code_lines(node)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and _n_code_lines(node) > MAX_FUNCTION_LINES
    }
    assert not too_long


def _n_code_lines(function):
    """Count the lines from ``def`` to the end, without the docstring."""
    n_lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        n_lines -= first.end_lineno - first.lineno + 1
    return n_lines
