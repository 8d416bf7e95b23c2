"""The options, messages, files and links that the documents name exist."""

import ast
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

import ppcls
from ppcls.config import Config
from ppcls.option_names import RENAMED

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "dataset/README.md"])


def option_names(section, prefix=""):
    """The full names of all options and sections below a dataclass."""
    for field in fields(section):
        kind = get_type_hints(section)[field.name]
        yield f"{prefix}{field.name}"
        if is_dataclass(kind):
            yield from option_names(kind, f"{prefix}{field.name}.")


OPTIONS = set(option_names(Config))
SECTIONS = sorted({name.split(".")[0] for name in OPTIONS if "." in name})


def read(path):
    return path.read_text(encoding="utf-8")


def named(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_options_exist(path):
    found = re.findall(rf"(?<![\w./])((?:{'|'.join(SECTIONS)})(?:\.[a-z]\w*)+)(?![\w(])", read(path))
    options = {name for name in found if not name.endswith((".py", ".json", ".yaml"))}
    others = {"model.safetensors", "model.onnx", "model.onnx.data"}
    earlier = set(RENAMED) if path.name == "migration.md" else set()
    assert not options - OPTIONS - others - earlier


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", read(path)):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_tools_and_their_options_exist(path):
    sources = [*(ROOT / "ppcls").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
    source = "\n".join(map(read, sources))
    for tool, rest in re.findall(r"(tools/\w+\.py)([^`|]*)", read(path)):
        if "ppcls/configs/" in rest or "Global" in rest or "Infer" in rest:
            continue  # a command of PaddleClas's
        assert (ROOT / tool).exists(), tool
        for option in re.findall(r"--[a-z][a-z-]+", rest.split("\n\n")[0].split("\npython")[0]):
            assert f'"{option}"' in source, f"{tool} {option}"


def test_the_two_readmes_have_the_same_commands_headings_and_links():
    texts = [read(ROOT / name) for name in ("README.md", "README_ch.md")]
    codes = [re.findall(r"```.*?```", text, re.DOTALL) for text in texts]
    for blocks in codes:
        assert blocks.pop().startswith("```\nconfigs/ ")  # the folders, in words
    assert codes[0] == codes[1]
    headings = [re.findall(r"^#+ ", text, re.MULTILINE) for text in texts]
    assert headings[0] == headings[1]
    links = [re.findall(r"\]\(([^)]+)\)", text) for text in texts]
    own = ("README.md", "README_ch.md", "_wsl.md", "_wsl_ch.md")
    assert [x for x in links[0] if not x.endswith(own)] == [x for x in links[1] if not x.endswith(own)]
    figures = [sorted(re.findall(r"\d+(?:[.,]\d+)*", text)) for text in texts]
    assert figures[0] == figures[1]


def test_quoted_messages_are_those_of_the_code():
    parts = [
        node.value
        for path in (ROOT / "ppcls").rglob("*.py")
        for node in ast.walk(ast.parse(read(path)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    rows = [line for line in read(ROOT / "docs/troubleshooting.md").splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    quoted = [message for row in rows for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert not [message for message in quoted if not any(message in part for part in parts)]


def test_the_changelog_begins_with_this_version():
    versions = re.findall(r"^## \[(.+?)\]", read(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == ppcls.__version__
