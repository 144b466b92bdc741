"""Write the Python code of the contract: `python proto/generate.py [FOLDER]`.

Owns which generators run and with which options. FOLDER is proto/gen unless given; the check that
the committed code is fresh gives another one and compares. Imports need no fix-ups because the
path of a .proto file is its package. mypy-protobuf writes the stubs: it types sync and async
clients apart and carries the contract's comments into them.
"""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
HEADER = '"""Generated code of the contract; see proto/ds4/v1. Do not edit."""\n'


def generate(folder: Path) -> None:
    """Write ds4/v1 below `folder`; raises SystemExit with protoc's code when it fails."""
    scripts = Path(sys.executable).parent
    package = folder / "ds4" / "v1"
    package.mkdir(parents=True, exist_ok=True)
    for stale in package.glob("*_pb2*"):
        stale.unlink()
    code = protoc.main(
        [
            "protoc",
            f"--proto_path={ROOT}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"--python_out={folder}",
            f"--grpc_python_out={folder}",
            f"--mypy_out=quiet:{folder}",
            f"--mypy_grpc_out=quiet:{folder}",
            *(str(path) for path in sorted((ROOT / "ds4" / "v1").glob("*.proto"))),
        ]
    )
    if code:
        raise SystemExit(code)
    for init in (folder / "ds4" / "__init__.py", package / "__init__.py"):
        init.write_text(HEADER)
    (folder / "ds4" / "py.typed").write_text("")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "gen")
