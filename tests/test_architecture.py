"""The shape of the code: who may import what, and how long a file and a function may be."""

import ast
import graphlib
import statistics
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

import sklearn_diffuq

PACKAGE = Path(sklearn_diffuq.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
MAX_FILE_LINES = 380
MEDIAN_FILE_LINES = 160
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
# Public constructors may have more, and so may these, whose options are all keywords.
CROWDED = {"__init__", "from_predictions", "expected_calibration_error"}

# The folders and files of the package in the order of the data; each may import those above it.
ORDER = [
    "exceptions.py",
    "metrics",
    "datasets",
    "_state.py",
    "_warnings.py",
    "_inputs",
    "_backbones",
    "_training",
    "_wrapped",
    "baselines",
    "_path",
    "_propagation",
    "_calibration",
    "_transition",
    "_fitted_path.py",
    "_persistence",
    "_predictions.py",
    "_fit_path.py",
    "_classifier.py",
    "_step_curve.py",
]
# The two wings meet in the last five: neither knows the other.
DIFFUSION = ("_path", "_propagation", "_calibration", "_transition")
MODEL_ONLY = ("_wrapped", "baselines")
# Heavy library -> the only files that may import it.
OWNERS = {
    "laplace": ["baselines/_laplace.py"],
    "skorch": ["_training/skorch_net.py"],
    "safetensors": ["_persistence/files.py"],
    "matplotlib": ["metrics/_axes.py", "metrics/_*display*.py"],
}
# Too heavy, or not always needed: imported where they are used.
LAZY = ("transformers", "timm", "matplotlib", "laplace", "peft")
# Folder -> libraries it must know nothing about; scikit-learn's warnings are no estimators.
FORBIDDEN = {
    "metrics/": ("torch", "skorch", "transformers", "timm"),
    "datasets/": ("torch", "skorch", "transformers", "timm"),
    "_path/": ("sklearn",),
    "_propagation/": ("sklearn",),
    "_transition/": ("sklearn",),
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
    """Return the entry of `ORDER` that a file (``a/b.py``) or a module (``a.b``) belongs to."""
    first = name.removesuffix(".py").replace("/", ".").split(".")[0]
    return first if first in ORDER else first + ".py"


def imported_parts(name):
    """Yield (import, part) for what a file imports of the package."""
    for found in IMPORTS[name]:
        if found.is_from("sklearn_diffuq") and found.module.count(".") > 0:
            inside = found.module.removeprefix("sklearn_diffuq.")
            if inside != "__version__":
                yield found, part_of(inside)


FILES_IN_ORDER = [name for name in FILES if name != "__init__.py"]


def test_every_file_has_a_place():
    assert {part_of(name) for name in FILES_IN_ORDER} == set(ORDER)


@pytest.mark.parametrize("name", FILES_IN_ORDER)
def test_nothing_is_imported_upwards(name):
    place = ORDER.index(part_of(name))
    wrong = [
        f"line {found.line} imports {found.module}"
        for found, part in imported_parts(name)
        if ORDER.index(part) > place
    ]
    assert not wrong


def test_the_two_wings_do_not_know_each_other():
    wrong = [
        f"{name}:{found.line} imports {found.module}"
        for name in FILES_IN_ORDER
        for found, part in imported_parts(name)
        if (part_of(name) in DIFFUSION and part in MODEL_ONLY)
        or (part_of(name) in MODEL_ONLY and part in DIFFUSION)
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
        front = "sklearn_diffuq.metrics"
        if not name.startswith(front) and any(i.is_from(front) for i in found):
            graph[name] |= {other for other in modules if other.startswith(front + ".")}
    graphlib.TopologicalSorter(graph).prepare()


def test_prediction_loads_no_training_code():
    code = "import sys, sklearn_diffuq._predictions; print('skorch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


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


def test_files_are_short():
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()
    }
    assert not {name: n for name, n in lengths.items() if n > MAX_FILE_LINES}
    # without the one-line files that only make a folder a package
    assert statistics.median(n for n in lengths.values() if n > 1) <= MEDIAN_FILE_LINES


def functions_of(name):
    """Yield (class name or None, function) for every function of a file."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.name if isinstance(node, ast.ClassDef) else None, child


@pytest.mark.parametrize("name", FILES)
def test_functions_are_short(name):
    assert not {
        f.name: _n_code_lines(f)
        for _, f in functions_of(name)
        if _n_code_lines(f) > MAX_FUNCTION_LINES
    }


@pytest.mark.parametrize("name", FILES)
def test_functions_have_few_parameters(name):
    crowded = {}
    for owner, function in functions_of(name):
        is_public = function.name in CROWDED and not (owner or "").startswith("_")
        arguments = function.args
        names = [a.arg for a in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
        n = len(names) - (owner is not None and names[:1] in (["self"], ["cls"]))
        if n > MAX_PARAMETERS and not is_public:
            crowded[function.name] = n
    assert not crowded


def _n_code_lines(function):
    """Count the lines from ``def`` to the end, without the docstring."""
    n_lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        n_lines -= first.end_lineno - first.lineno + 1
    return n_lines
