"""House rules that no linter knows, and that the checks of `make check` can fail.

A check that cannot fail protects nothing: each is run here on a small repository that breaks it.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the contract and the checks, committed to main."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*GIT, *command], cwd=tmp_path, check=True)
    return tmp_path


def check(repository: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=repository,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_breaking_change_is_found(repository: Path) -> None:
    """A field that is renumbered fails the check against main, and a new field does not."""
    messages = repository / "proto/ds4/v1/types.proto"
    change(messages, "string hint = 3;", "string hint = 3;\n  // New.\n  string more = 4;")
    assert check(repository, "sh", "tools/check_breaking.sh").returncode == 0
    change(messages, "string hint = 3;", "string hint = 5;")
    broken = check(repository, "sh", "tools/check_breaking.sh")
    assert broken.returncode != 0
    assert "hint" in broken.stdout


def test_stale_code_is_found(repository: Path) -> None:
    """A contract that changed without its generated code fails, and says what to type."""
    assert check(repository, sys.executable, "tools/check_generated.py").returncode == 0
    change(repository / "proto/ds4/v1/types.proto", "string hint = 3;", "string tip = 3;")
    stale = check(repository, sys.executable, "tools/check_generated.py")
    assert stale.returncode == 1
    assert "ds4/v1/types_pb2.py is not fresh; type: make gen" in stale.stdout


def test_long_file_is_found(repository: Path) -> None:
    """A file of 401 lines fails, also before it is committed; one of 400 does not."""
    (repository / "right.py").write_text("x = 1\n" * 400)
    assert check(repository, sys.executable, "tools/check_sizes.py").returncode == 0
    (repository / "long.py").write_text("x = 1\n" * 401)
    long = check(repository, sys.executable, "tools/check_sizes.py")
    assert long.returncode == 1
    assert "long.py: 401 lines" in long.stdout


def test_every_test_says_what_it_shows() -> None:
    """Every test has a docstring, the sentence of behaviour that it shows."""
    silent = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_no_test_is_skipped() -> None:
    """No test is skipped or expected to fail: what cannot run here is not in the suite."""
    words = ("pytest.mark.skip", "pytest.mark.xfail", "pytest.skip(", "importorskip(")
    this = Path(__file__)
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for word in words
        if path != this and word in path.read_text()
    ]
    assert found == []
