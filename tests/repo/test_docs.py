"""Documents say what is there: their links lead somewhere, and the paths they name exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
FOLDERS = "bench|clients|daemon|demo|deploy|docs|kvcache_svc|models|proto|runtime|tests|tools"
NAMED_PATH = re.compile(rf"`(?:\./)?((?:{FOLDERS})/[\w./-]*)`")
TARGET = re.compile(r"\bmake (?:\w+=\S+ )*([a-z]+)\b")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_exist(document: Path) -> None:
    """Every relative link of a document and every path that it names in code is a file here."""
    text = document.read_text()
    missing = [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    missing += [path for path in NAMED_PATH.findall(text) if not (ROOT / path).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    """Every `make` command that a document shows in code names a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = re.findall(r"```.*?```|`[^`\n]+`", document.read_text(), re.DOTALL)
    named = {target for span in code for target in TARGET.findall(span)}
    assert named <= targets
