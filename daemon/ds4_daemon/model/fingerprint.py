"""What cached values depend on, as canonical parts: two daemons with equal parts may share them.

Weights (every byte of their files), the network's numbers, the tokenizer, rounding, the type of
activations and the class of kernels. Not a library's version, nor how prompts are cut: those change
last bits, as other company of a token does not, and the comparison of restored with recomputed
prefixes (`engine.canary`) watches that they stay there.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ds4_daemon.model.config import GGUF_ARCHITECTURE, ModelConfig
from ds4_daemon.model.files import ModelFiles

# Raise it with any change of kernels or of the network that alters cached values beyond the last
# bits that another order of summation alters: rounding, the compressors, RoPE, the indexer's keys.
NUMERICS_EPOCH = 1

# Pieces of a file are hashed side by side: 80 GB by one core take a minute. The digest depends on
# the piece's size and on nothing else of how it is made.
_PIECE_BYTES = 64 * 1024 * 1024
_THREADS = 4


def fingerprint_parts(
    config: ModelConfig,
    weights: str,
    tokenizer: str,
    *,
    device: str,
    dtype: str,
    rounding: bool,
    layout_version: int,
) -> dict[str, Any]:
    """The parts for `kv_keys.canonical_json`; `weights` and `tokenizer` are digests."""
    return {
        "schema": 1,
        "architecture": GGUF_ARCHITECTURE,
        "network": asdict(config),
        "weights": weights,
        "tokenizer": tokenizer,
        "numerics_epoch": NUMERICS_EPOCH,
        "kernels": {"cpu": "numpy", "mlx-cpu": "mlx-cpu"}.get(device, "mlx-gpu"),
        "activations": dtype,
        "rounding": rounding,
        "layout": layout_version,
    }


def tokenizer_digest(files: ModelFiles) -> str:
    """SHA-256 of tokenizer.json; empty where it is a part of the weights' file, or nowhere."""
    source = files.tokenizer_source
    return hashlib.sha256(source.read_bytes()).hexdigest() if isinstance(source, Path) else ""


def weights_digest(files: ModelFiles, memo: Path) -> str:
    """SHA-256 over the files of a model, in order of their names.

    A digest is remembered in the file `memo` for as long as path, size, inode and time of change
    stay the same, so that starting again does not read 80 GB.
    """
    known = _read(memo)
    digest = hashlib.sha256()
    for path in sorted(files.paths):
        found = path.stat()
        stamp = [found.st_size, found.st_mtime_ns, found.st_ino]
        entry = known.get(str(path))
        if not (isinstance(entry, list) and len(entry) == 4 and entry[:3] == stamp):
            entry = [*stamp, _file_digest(path, found.st_size)]
            known[str(path)] = entry
            _write(memo, known)
        digest.update(bytes.fromhex(entry[3]))
    files.check_unchanged()
    return digest.hexdigest()


def _file_digest(path: Path, size: int) -> str:
    """SHA-256 over the SHA-256 of every 64 MiB."""

    def piece(at: int) -> bytes:
        with path.open("rb") as file:
            file.seek(at)
            return hashlib.sha256(file.read(_PIECE_BYTES)).digest()

    whole = hashlib.sha256()
    with ThreadPoolExecutor(_THREADS) as pool:
        pieces: Iterator[bytes] = pool.map(piece, range(0, size, _PIECE_BYTES))
        for part in pieces:
            whole.update(part)
    return whole.hexdigest()


def _read(memo: Path) -> dict[str, Any]:
    try:
        known = json.loads(memo.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(memo: Path, known: dict[str, Any]) -> None:
    """Whole or not at all; a memo that cannot be written is only slower."""
    draft = memo.with_name(f"{memo.name}.{os.getpid()}")
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(known))
        draft.replace(memo)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
