"""The distribution: what its wheel holds, what its commands run, what it needs.

Builds the wheel as pip would and looks into it; compares what the code imports with what
pyproject.toml declares.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import EntryPoint, entry_points, packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [
    ROOT / path for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("ds4-*-py3-none-any.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def commands() -> list[EntryPoint]:
    return [e for e in entry_points(group="console_scripts") if e.dist and e.dist.name == "ds4"]


def test_wheel_holds_every_module(wheel: Path) -> None:
    """Every Python file and stub of every package is in the wheel, under the package's own name."""
    for package in PACKAGES:
        sources = {
            path.relative_to(package.parent)
            for suffix in ("*.py", "*.pyi", "py.typed")
            for path in package.rglob(suffix)
        }
        packed = {path.relative_to(wheel) for path in (wheel / package.name).rglob("*")}
        assert sources and sources <= packed, package.name
        assert Path(package.name, "py.typed") in packed, "its types are for its users too"


def test_wheel_holds_nothing_else(wheel: Path) -> None:
    """The wheel brings the packages and its own metadata to site-packages, and no other name."""
    expected = {package.name for package in PACKAGES} | {
        f"ds4-{PROJECT['project']['version']}.dist-info"
    }
    assert {path.name for path in wheel.iterdir()} == expected


def test_wheel_brings_the_embedded_model(wheel: Path) -> None:
    """The model that is served where none is named is in the wheel, byte for byte."""
    (packed,) = wheel.rglob("*.gguf")
    assert packed.relative_to(wheel) == Path("ds4_daemon/embedded/nano.gguf")
    assert packed.read_bytes() == (ROOT / "daemon/ds4_daemon/embedded/nano.gguf").read_bytes()


def test_wheel_carries_the_licence(wheel: Path) -> None:
    """The licence travels with the wheel, word for word."""
    (packed,) = wheel.glob("*.dist-info/licenses/LICENSE")
    assert packed.read_text() == (ROOT / "LICENSE").read_text()


def test_packages_import_from_the_wheel(wheel: Path) -> None:
    """What the wheel holds can be imported without the source tree."""
    names = [package.name for package in PACKAGES]
    code = (
        "import importlib, ds4.v1.admin_pb2_grpc, ds4.v1.inference_pb2_grpc\n"
        f"for name in {names!r}: print(importlib.import_module(name).__file__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(wheel)},
        cwd=wheel,
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == [str(wheel / name / "__init__.py") for name in names]


def test_commands_resolve() -> None:
    """Every command that is installed names a function that exists."""
    assert {command.name for command in commands()} == set(PROJECT["project"]["scripts"])
    for command in commands():
        assert callable(command.load()), command.name


def imported(package: Path) -> set[str]:
    names: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_dependencies_are_what_is_imported() -> None:
    """Everything that the packages import is declared, and everything declared is imported."""
    ours = {package.name for package in PACKAGES}
    foreign = set.union(*map(imported, PACKAGES)) - sys.stdlib_module_names - ours
    owners = packages_distributions()
    needed = {frozenset(map(normal, owners.get(name, [name]))) for name in foreign}
    declared = {
        normal(re.split(r"[\[<>=!;\s]", line)[0]) for line in PROJECT["project"]["dependencies"]
    }
    assert [sorted(names) for names in needed if not names & declared] == []
    assert declared - set().union(*needed) == set()
