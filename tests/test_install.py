"""The package as pip installs it: from a clone, from a wheel and from an sdist. Needs no network."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFIGS = {path.name for path in (ROOT / "configs").glob("*.yaml")}
PIP = ("-m", "pip", "--disable-pip-version-check")
HERE = ("--no-build-isolation", "--no-deps", "--no-index")  # with this environment's setuptools


def call(*arguments, cwd):
    run = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of what is packaged, in a folder named ppcls, as git clones it."""
    pytest.importorskip("wheel", reason="pip install 'ppcls[test]'")
    folder = tmp_path_factory.mktemp("projects") / "ppcls"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("configs", "ppcls"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def content(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def check(wheel: Path) -> None:
    names = content(wheel)
    assert {f"ppcls/configs/{name}" for name in CONFIGS} == {n for n in names if n.endswith(".yaml")}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "ppcls").rglob("*.py")}
    assert sources == {name for name in names if name.endswith(".py")}
    assert {"ppcls/py.typed", "ppcls/data/imagenet1k_labels.txt", "ppcls/serving/page.html"} <= names


def test_an_editable_clone_is_imported_from_the_folder_above(clone, tmp_path):
    call(*PIP, "install", "-q", *HERE, "--ignore-installed", "--prefix", tmp_path, "-e", clone, cwd=tmp_path)
    (site,) = tmp_path.rglob("site-packages")
    # as a start of Python reads it, without what this environment has installed
    code = f"""
import site
site.addsitedir({str(site)!r})
import ppcls
print(ppcls.__version__, ppcls.__file__)
"""
    for folder in (clone.parent, clone, tmp_path):
        version, file = call("-E", "-S", "-c", code, cwd=folder).split()
        assert version and Path(file) == clone / "ppcls" / "__init__.py"
    assert not (clone / "ppcls" / "configs").exists()


def test_the_wheel_holds_all_configs_and_so_does_that_of_the_sdist(clone, tmp_path):
    call("setup.py", "-q", "sdist", "--dist-dir", tmp_path, cwd=clone)
    (sdist,) = tmp_path.glob("ppcls-*.tar.gz")
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert (unpacked / "CHANGELOG.md").is_file()
    for number, source in enumerate((clone, unpacked)):
        call(*PIP, "wheel", "-q", *HERE, "--wheel-dir", tmp_path / str(number), source, cwd=tmp_path)
        (wheel,) = (tmp_path / str(number)).glob("*.whl")
        check(wheel)


def test_the_installed_package_finds_its_configs(clone, tmp_path):
    call(*PIP, "install", "-q", *HERE, "--target", tmp_path / "site", clone, cwd=tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
from ppcls.config_files import find_config
print(find_config("EfficientNetB4"))
from ppcls.options import find_options
assert find_options(["optim.lr"])[0].meaning
"""
    assert call("-c", code, cwd=tmp_path).strip() == str(tmp_path / "site/ppcls/configs/EfficientNetB4.yaml")
