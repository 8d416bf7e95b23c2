"""Imports go one way, and the heavy ones come late."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("paddle", "numpy", "cv2", "visualdl", "matplotlib", "PIL")
# Each package may import those that stand before it.
ORDER = [
    ("errors", "preprocessing", "processor"),
    ("files",),
    ("architectures",),
    ("complexity",),
    ("config", "distributed"),
    ("progress",),
    ("weights", "data"),
    ("inference",),
    ("evaluation",),
    ("training",),
    ("benchmarks",),
    ("cli",),
]
HOMES = {"MODELS": "architectures", "build_model": "architectures", "load_weights": "weights"}
HOMES |= {"load": "inference", "Predictor": "inference"}
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def heavy_modules_after(code: str) -> set[str]:
    report = f"{code}\nimport sys; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(ast.literal_eval(run.stdout.splitlines()[-1]))


def test_importing_ppcls_imports_nothing_heavy():
    assert heavy_modules_after("import ppcls; ppcls.MODELS") == set()


@pytest.mark.parametrize(
    "tool", sorted({path.stem for path in (ROOT / "tools").glob("*.py")} - {"quickstart"})
)
def test_help_imports_nothing_heavy(tool):
    code = f"""
import sys
sys.path.insert(0, "tools")
from {tool} import main
try:
    main(["--help"])
except SystemExit:
    pass
"""
    assert heavy_modules_after(code) == set()


def test_the_data_pipeline_imports_no_paddle():
    code = "import ppcls.data.loader, ppcls.data.dataset, ppcls.inference.classify, ppcls.evaluation.evaluate"
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
        if part in ("__init__", "__main__"):
            continue
        wrong += [
            f"{path.relative_to(ROOT)} imports ppcls.{other}"
            for other in imports_of(path)
            if other != part and other in LEVEL and LEVEL[other] >= LEVEL[part]
        ]
        assert part in LEVEL, f"{path}: give {part} its place in ORDER"
    assert not wrong
