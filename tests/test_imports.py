"""Imports go one way without circles, heavy ones come late, and setup.py declares what is imported."""

import ast
import importlib.metadata
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT, value_from

HEAVY = ("paddle", "numpy", "cv2", "visualdl", "matplotlib", "PIL")
# Each package may import those that stand before it.
ORDER = [
    ("errors", "format1", "intervals", "option_names", "preprocessing", "processor"),
    ("files", "streams", "typed"),
    ("architectures",),
    ("complexity", "onednn"),
    ("config", "distributed"),
    ("commands", "config_checks", "progress"),
    ("config_files", "options"),
    ("weights", "data"),
    ("build",),
    ("inference",),
    ("evaluation",),
    ("serving",),
    ("training",),
    ("benchmarks",),
    ("cli",),
]
HOMES = {"MODELS": "architectures", "build_model": "architectures", "load_weights": "weights"}
HOMES |= {"load": "inference", "Predictor": "inference"}
# The package of setup.py that brings a module, where their names differ.
DISTRIBUTIONS = {"cv2": "opencv-python", "PIL": "pillow", "yaml": "pyyaml", "google": "protobuf"}
DISTRIBUTIONS |= {"paddle": "paddlepaddle", "sklearn": "scikit-learn", "python_multipart": "python-multipart"}
# Modules that only some users need, and the extras that bring them. All others are in install_requires.
EXTRAS = {
    "anyio": ["serve"],
    "cleanlab": ["clean"],
    "fsspec": ["remote"],
    "h11": ["serve"],
    "imagehash": ["clean"],
    "nncf": ["int8"],
    "onnx": ["onnx", "int8"],
    "onnxoptimizer": ["onnx"],
    "onnxruntime": ["onnx", "onnx-paddle2"],
    "openvino": ["openvino", "int8"],
    "paddle": ["cpu"],
    "paddle2onnx": ["onnx", "onnx-paddle2"],
    "prometheus_client": ["serve"],
    "python_multipart": ["serve"],
    "sklearn": ["clean"],
    "starlette": ["serve"],
    "threadpoolctl": ["clean"],
    "uvicorn": ["serve"],
}
# Modules of another environment, in which a script of ppcls is run as a file.
ELSEWHERE = {"torch", "timm"}
PACKAGES = sorted(path.parent for path in (ROOT / "ppcls").rglob("__init__.py"))
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def heavy_modules_after(code: str) -> set[str]:
    return set(value_from(f"{code}\nimport sys; print([m for m in {HEAVY} if m in sys.modules])"))


def test_importing_ppcls_imports_nothing_heavy():
    assert heavy_modules_after("import ppcls; ppcls.MODELS") == set()


@pytest.mark.parametrize(
    "tool", sorted({path.stem for path in (ROOT / "tools").glob("*.py")} - {"quickstart"})
)
def test_help_imports_nothing_heavy(tool):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
from {tool} import main
try:
    main(["--help"])
except SystemExit:
    pass
"""
    assert heavy_modules_after(code) == set()


def test_the_data_pipeline_imports_no_paddle():
    code = "import ppcls.data.loader, ppcls.data.open, ppcls.inference.load, ppcls.evaluation.evaluate"
    assert "paddle" not in heavy_modules_after(code)


def imports_of(path: Path) -> set[str]:
    """The parts of ppcls that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ppcls"):
            parts = (node.module or "").split(".")
            names = {alias.name for alias in node.names}
            found |= {parts[1]} if len(parts) > 1 else {HOMES.get(name, name) for name in names}
            assert node.level == 0, f"{path}: import from ppcls by its full name"
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("ppcls.")}
    return found


def test_imports_go_one_way():
    wrong = []
    for path in sorted((ROOT / "ppcls").rglob("*.py")):
        part = path.relative_to(ROOT / "ppcls").parts[0].removesuffix(".py")
        if part == "__init__" or path.name == "__main__.py":  # a command imports what it runs
            continue
        wrong += [
            f"{path.relative_to(ROOT)} imports ppcls.{other}"
            for other in imports_of(path)
            if other != part and other in LEVEL and LEVEL[other] >= LEVEL[part]
        ]
        assert part in LEVEL, f"{path}: give {part} its place in ORDER"
    assert not wrong


def imported_modules(path: Path) -> set[str]:
    """Full names of the modules that a module imports, anywhere in it. `from a import b` gives a.b too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imports_inside(package: Path) -> dict[str, set[str]]:
    """Each module of a package, and the others that it imports. A package inside it counts as one module. The
    package's own __init__ is left out, and programs, __main__, which nothing imports."""
    prefix = [*package.relative_to(ROOT).parts]
    graph: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        name = path.relative_to(package).parts[0].removesuffix(".py")
        if name != "__init__" and path.name != "__main__.py":
            modules = [module.split(".") for module in imported_modules(path)]
            graph.setdefault(name, set()).update(
                m[len(prefix)] for m in modules if m[:-1][: len(prefix)] == prefix
            )
    return {name: (others & graph.keys()) - {name} for name, others in graph.items()}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules of which each imports, directly or not, all others of its group."""

    def reachable(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    reached = {name: reachable(name) for name in graph}
    groups = {frozenset(b for b in reached[a] if a in reached[b]) for a in graph if a in reached[a]}
    return sorted(map(set, groups), key=sorted)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_modules_of_a_package_form_no_circle(package):
    assert circles(imports_inside(package)) == []


def test_a_circle_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("test_imports.ROOT", tmp_path)
    texts = {
        "__init__": "from p.a import x\n",
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b import B\n",
        "b": "def late():\n    from p import c\n",
        "c": "import p.a, p.d\n",
        "d": "import p\n",
    }
    (tmp_path / "p").mkdir()
    for name, text in texts.items():
        (tmp_path / "p" / f"{name}.py").write_text(text)
    assert circles(imports_inside(tmp_path / "p")) == [{"a", "b", "c"}]


@pytest.fixture
def declared(monkeypatch):
    """The names of the packages that setup.py declares, by extra; those of install_requires under ""."""
    options = {}
    fake = SimpleNamespace(setup=lambda **given: options.update(given), find_packages=lambda **_: [])
    for name in ("setuptools", "setuptools.command"):
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setitem(sys.modules, "setuptools.command.build_py", SimpleNamespace(build_py=object))
    monkeypatch.setattr(importlib.metadata, "distributions", lambda **_: [])  # no other OpenCV is there
    runpy.run_path(str(ROOT / "setup.py"))
    groups = {"": options["install_requires"]} | options["extras_require"]
    names = {
        extra: {re.match(r"[\w.-]+", line)[0].lower() for line in lines} for extra, lines in groups.items()
    }
    return names | {"version": options["version"]}


def test_setup_declares_each_package_that_is_imported(declared):
    imported = {
        module.split(".")[0]: path.relative_to(ROOT)
        for path in sorted((ROOT / "ppcls").rglob("*.py"))
        for module in imported_modules(path)
    }
    others = imported.keys() - sys.stdlib_module_names - {"ppcls"} - ELSEWHERE
    wrong = [
        f"{imported[module]} imports {module}: declare {name} in setup.py, {extra or 'install_requires'}"
        for module in sorted(others)
        for name in [DISTRIBUTIONS.get(module, module)]
        for extra in EXTRAS.get(module, [""])
        if name not in declared[extra]
    ]
    assert not wrong
    assert not EXTRAS.keys() - others  # no longer imported: remove it here and in setup.py


def test_the_extra_lite_brings_the_packages_of_weights(declared):
    """They are found by their names in the table, and never imported."""
    from ppcls.weights.published import PUBLISHED

    packages = {row.package for rows in PUBLISHED.values() for row in rows if row.package is not None}
    assert declared["lite"] == packages and len(packages) == 3


def test_setup_reads_the_version_of_the_package(declared):
    import ppcls

    assert declared["version"] == ppcls.__version__
