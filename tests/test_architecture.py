"""The house stands: imports go down, backends are named on the ground floor alone, the public face is names."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import environment

import bpcore as bp
from bpcore.primitive import PRIMITIVES, SETS, load

PACKAGE = Path(bp.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LIBRARIES = {"numpy", "cupy", "cupyx", "torch", "numba", "array_api_compat", "array_api_strict", "array_api_extra"}

# Each file imports from the floors below it, or from its own.
FLOORS = {
    **dict.fromkeys(
        (
            *("array", "arguments", "face", "context", "files", "packages", "philox", "streams", "tables"),
            *("host", "library", "libraries", "backend"),
        ),
        0,
    ),
    **dict.fromkeys(("primitive", "verify"), 1),
    **dict.fromkeys(("functional", "kernels"), 2),
    **dict.fromkeys(("module", "mode", "windows", "expect", "layout", "by_hand", "initializers", "checkpoint"), 3),
    "modules": 4,
    **dict.fromkeys(("network", "check", "trial", "causes", "costs", "counting", "prediction", "recordings", "structure"), 5),
    **dict.fromkeys(("training", "optimizers", "schedules"), 6),
    **dict.fromkeys(("plots", "datasets", "downloads", "info"), 7),
}

# Outside the ground floor and kernels/, these work on the host, and may say numpy.
HOST_SIDE = {
    "causes.py",
    "check.py",
    "checkpoint.py",
    "counting.py",
    "datasets.py",
    "initializers.py",
    "layout.py",
    "plots/canvas.py",
    "plots/confusions.py",
    "plots/weights.py",
    "training/data.py",
    "verify.py",
    "trial.py",
}

# The names that others call, of floors 0 to 5; the training loop's are tested beside it.
PUBLIC = re.findall(
    r"\w+",
    """
    get_backend use_backend backend_info Backend Network evaluate initialize check_module cost
    Linear ReLU LeakyReLU ELU GELU SiLU Sigmoid Tanh Softplus Softmax LogSoftmax Identity
    Add Subtract Multiply Divide MatMul Exp Log Power Sum Mean Concatenate Weight Reshape Flatten
    LayerNorm RMSNorm Dropout Sequential Residual Circuit MLP SquaredError LogisticLoss CrossEntropy Huber
""",
)


def name(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def floor(dotted: str) -> int | None:
    """The floor of a module "bpcore.x.y"; None for the public face."""
    parts = dotted.split(".")
    return FLOORS[parts[1]] if len(parts) > 1 else None


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, wherever in the file; `from x import y` means x.y where that is a module."""
    package = ["bpcore", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            folder = PACKAGE.parent / Path(*module.split("."))
            for alias in node.names:
                inside = (folder / alias.name).is_dir() or (folder / f"{alias.name}.py").is_file()
                yield node.lineno, f"{module}.{alias.name}" if inside else module


@pytest.mark.parametrize("file", FILES, ids=name)
def test_imports_go_down(file):
    part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part in ("__init__", "__main__"):  # the public face sees every floor
        return
    assert part in FLOORS, f"{name(file)} has no floor: put it on one in FLOORS"
    for line, module in imports(file):
        if module.partition(".")[0] == "bpcore":
            assert floor(module) is not None, f"{name(file)}:{line} imports the public face; import from the file that has it"
            assert floor(module) <= FLOORS[part], f"{name(file)}:{line} is on floor {FLOORS[part]}, imports {module} from above"


def on_the_ground(file: Path) -> bool:
    """Whether a file is on floor 0."""
    return FLOORS.get(name(file).removesuffix(".py")) == 0


@pytest.mark.parametrize("file", FILES, ids=name)
def test_only_the_ground_floor_names_a_backend(file):
    if on_the_ground(file) or name(file).startswith("kernels/"):
        return
    allowed = {"numpy"} if name(file) in HOST_SIDE else set()
    for line, module in imports(file):
        library = module.partition(".")[0]
        assert library not in LIBRARIES - allowed, f"{name(file)}:{line} imports {module}; ask the array: namespace(z)"


def test_the_list_of_host_side_files_is_no_longer_than_needed():
    using = {name(file) for file in FILES if any(module.partition(".")[0] == "numpy" for _, module in imports(file))}
    assert using >= HOST_SIDE
    assert not any(on_the_ground(PACKAGE / file) for file in HOST_SIDE)


@pytest.mark.parametrize("file", [file for file in FILES if name(file).startswith(("functional/", "modules/"))], ids=name)
def test_equations_call_no_methods_of_arrays(file):
    """Array API: operators and functions of xp, not z.sum(); @ and .T are the standard's own."""
    methods = {"sum", "mean", "max", "min", "dot", "reshape", "astype", "copy", "transpose", "clip", "take", "ravel", "item"}
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods:
            of = ast.unparse(node.func.value)
            assert of in ("xp", "np", "f") or of.startswith("namespace(") or ON_THE_HOST in enclosing(file, node), (
                f"{name(file)}:{node.lineno} calls .{node.func.attr} of {of}"
            )


ON_THE_HOST = "check_labels"  # it is given NumPy's arrays


def enclosing(file: Path, node: ast.AST) -> set[str]:
    """The names of the functions that the node lies in."""
    functions = (f for f in ast.walk(tree(file)) if isinstance(f, ast.FunctionDef))
    return {f.name for f in functions if f.lineno <= node.lineno <= f.end_lineno}


def undocumented(file: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of what is public and has no docstring."""
    if not ast.get_docstring(tree(file)):
        yield 1, "the file"
    for node in tree(file).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_") and not ast.get_docstring(node):
            yield node.lineno, node.name


def documented_elsewhere(file: Path) -> set[str]:
    """A twin's docstring is its definition's; what counting.py has under the Array API's names, the standard describes."""
    if name(file).startswith("kernels/"):
        files = (tree(f) for f in FILES if name(f).startswith("functional/"))
        return {node.name for one in files for node in one.body if isinstance(node, ast.FunctionDef)}
    return set(dir(np)) if name(file) == "counting.py" else set()


@pytest.mark.parametrize("file", FILES, ids=name)
def test_what_is_public_has_a_docstring(file):
    missing = [(line, what) for line, what in undocumented(file) if what not in documented_elsewhere(file)]
    assert not missing, f"{name(file)} has no docstring for {missing}"


def test_the_face_is_names_and_nothing_else():
    _, *body = tree(PACKAGE / "__init__.py").body
    for node in body:
        assigned = isinstance(node, ast.Assign) and node.targets[0].id in ("__all__", "__version__")
        gathered = isinstance(node, ast.AugAssign) and node.target.id == "__all__"
        prompt = isinstance(node, ast.If) and {of.targets[0].id for of in node.body} == {"__dir__", "__getattr__"}
        assert assigned or gathered or prompt or isinstance(node, ast.ImportFrom), (
            f"__init__.py:{node.lineno} is more than a name"
        )


def test_the_public_names_are_there():
    """The contract; and __all__ lists what there is, each once."""
    assert set(PUBLIC) <= set(bp.__all__)
    assert all(hasattr(bp, name) for name in bp.__all__)
    assert len(set(bp.__all__)) == len(bp.__all__)
    assert set(bp.modules.__all__) <= set(bp.__all__)


@pytest.mark.parametrize("package", [bp, bp.functional, bp.modules], ids=lambda package: package.__name__)
def test_completion_lists_the_public_names_alone(package):
    assert {name for name in dir(package) if not name.startswith("__")} == set(package.__all__)


def test_functional_has_every_primitive_and_backward_function():
    for file in FILES:
        if name(file).startswith("functional/") and file.stem not in ("__init__", "numerics"):
            functions = {node.name for node in tree(file).body if isinstance(node, ast.FunctionDef)}
            pairs = {f for f in functions if f.endswith("_backward") or f"{f}_backward" in functions}
            assert pairs <= set(bp.functional.__all__), file
    assert set(PRIMITIVES) <= set(bp.functional.__all__)


UNKNOWN = {
    "Relu": "module 'bpcore' has no attribute 'Relu'; did you mean 'ReLU'?",
    "layer_norm": "module 'bpcore' has no attribute 'layer_norm'; did you mean 'LayerNorm'?",
    "Conv2D": "module 'bpcore' has no attribute 'Conv2D'; did you mean 'Conv2d'?",
    "quaternion": "module 'bpcore' has no attribute 'quaternion'",
}


@pytest.mark.parametrize("wrong", UNKNOWN)
def test_an_unknown_name_suggests_the_near_one(wrong):
    with pytest.raises(AttributeError) as error:
        getattr(bp, wrong)
    assert str(error.value) == UNKNOWN[wrong]


def test_what_moved_says_where_it_is():
    with pytest.raises(AttributeError, match=r"it is in bpcore\.primitive now"):
        _ = bp.functional.primitive


def test_no_public_function_has_the_name_of_a_file_beside_it():
    """Else `import bpcore.cost as c` would give the function."""
    files = {file.stem for file in PACKAGE.glob("*.py")} | {file.name for file in PACKAGE.iterdir() if file.is_dir()}
    assert {name for name in files & set(bp.__all__) if callable(getattr(bp, name))} == set()


def test_the_files_of_twins_are_named_as_the_families_of_their_primitives():
    """The twins of functional/linear.py are in linear.py of each set, and their CUDA kernels in linear.cu."""
    records = [record for record in PRIMITIVES.values() if record.definition.__module__.startswith("bpcore.functional.")]
    families = {record.definition.__module__.rpartition(".")[2] for record in records}
    kernels = [file for kind in ("py", "cu") for file in (PACKAGE / "kernels").glob(f"*/*.{kind}")]
    assert {name(file) for file in kernels if file.stem not in families | {"__init__"}} == set()
    for twins in filter(None, (load(kind)[0] for kind in SETS["numpy"])):
        kind = twins.__name__.removeprefix("bpcore.")
        for record in records:
            if kind in record.twins:
                expected = record.definition.__module__.replace("functional", kind)
                assert record.twins[kind].call.__module__ == expected, record.name


def test_importing_pulls_in_nothing_that_is_not_used_yet():
    lazy = LIBRARIES - {"numpy"} | {"safetensors", "tqdm", "matplotlib", "scipy", "sklearn", "pandas"}
    code = f"import sys, bpcore; print([name for name in {sorted(lazy)} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_no_two_files_import_each_other():
    """Nor do three or more in a circle; imports for type checkers alone count."""
    modules = {dotted(file) for file in FILES}
    above = {}
    for file in FILES:
        if file.parent == PACKAGE and file.stem in ("__init__", "__main__"):
            continue
        module = dotted(file)
        above[module] = {name for _, name in imports(file) if name in modules and name != module}
    while free := [module for module, names in above.items() if not names & above.keys()]:
        for module in free:
            del above[module]
    assert not above, f"a circle goes through some of {sorted(above)}"


def dotted(file: Path) -> str:
    """The name that imports this file."""
    return ".".join(["bpcore", *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
