"""The model that ds4 brings along: small, trained by this project, of DeepSeek V4's architecture.

Owns where its file lies: beside this module, in the wheel too. How it was made, what it can do and
on what it was trained: models/nano/README.md. Called by the daemon's start when no model is named.
"""

from pathlib import Path

from ds4_daemon.errors import ModelFileError

__all__ = ["NAME", "path"]

NAME = "ds4-nano (small test model, not DeepSeek's weights)"
_FILE = Path(__file__).with_name("nano.gguf")


def path() -> Path:
    """The GGUF file; raises ModelFileError where the installation lacks it."""
    if not _FILE.is_file():
        raise ModelFileError(
            "EMBEDDED_MODEL_MISSING",
            f"No model is named, and ds4's own is not in this installation: {_FILE}.",
            "name a model with --model, or install ds4 again",
        )
    return _FILE
