"""Builds ggml's quantizer, `libggml-base.so`, from llama-cpp-python's pinned source distribution.

    python models/nano/build_ggml.py [--sdist FILE] [--cache FOLDER]

Prints the library's path. Without `--sdist`, pip fetches the 77 MB file. Needs cmake, ninja and a C
compiler; the build takes about ten seconds. Built without FMA contraction, so that every machine's
blocks are the same bytes. No seed: nothing here is drawn.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_NAME = f"llama_cpp_python-{VERSION}"
_OFF = ("GGML_NATIVE", "LLAMA_CURL", "LLAMA_BUILD_TOOLS", "LLAMA_BUILD_EXAMPLES",
        "LLAMA_BUILD_SERVER", "LLAMA_BUILD_TESTS")  # fmt: skip


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ds4-nano"


def library(cache: Path, sdist: Path | None = None) -> Path:
    """The built library, from the cache or made now."""
    target = cache / f"libggml-base-{VERSION}.so"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        folder = Path(scratch)
        source = sdist or _fetched(folder)
        if hashlib.sha256(source.read_bytes()).hexdigest() != SHA256:
            raise ValueError(f"{source} is not the pinned {_NAME}.tar.gz")
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        llama = folder / _NAME / "vendor" / "llama.cpp"
        build = folder / "build"
        flags = [f"-D{option}=OFF" for option in _OFF]
        _run("cmake", "-S", str(llama), "-B", str(build), "-G", "Ninja", *flags,
             "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON",
             *(f"-DCMAKE_{c}_FLAGS=-ffp-contract=off" for c in ("C", "CXX")))  # fmt: skip
        _run("ninja", "-C", str(build), "ggml-base")
        (build / "bin" / "libggml-base.so").resolve().rename(target)
    return target


def _fetched(folder: Path) -> Path:
    _run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:",
         "--dest", str(folder), f"llama-cpp-python=={VERSION}")  # fmt: skip
    return folder / f"{_NAME}.tar.gz"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sdist", type=Path)
    parser.add_argument("--cache", type=Path, default=default_cache())
    args = parser.parse_args()
    print(library(args.cache, args.sdist))


if __name__ == "__main__":
    main()
