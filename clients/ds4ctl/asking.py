"""The prompt that a command was given: an argument or standard input, a chat turn or plain text.

Shared by `run` and `estimate`, so that what is estimated is what would run. Sends nothing.
"""

import sys
from typing import TYPE_CHECKING, Any

import click

from ds4ctl.options import read_input

if TYPE_CHECKING:
    from ds4_client import Prompt


def prompt_of(
    prompt: str | None, *, raw: bool, system: str | None, thinking: bool | None, effort: Any
) -> "Prompt":
    """What to ask. Raises UsageError where that makes no sense."""
    if raw and (system is not None or thinking is not None or effort is not None):
        raise click.UsageError("--raw has no system prompt and no reasoning")
    if prompt is None and sys.stdin.isatty():
        raise click.UsageError("no prompt: give one as an argument or on standard input")
    text = read_input() if prompt is None or prompt == "-" else prompt

    from ds4_client import Chat, Message, Text

    if raw:
        return Text(text)
    # What a shell adds to a line is not a part of the question.
    text = text.removesuffix("\n")
    if not text.strip():
        raise click.UsageError("the prompt is empty")
    turns = [Message("system", system)] if system else []
    return Chat([*turns, Message("user", text)], thinking=thinking, effort=effort)
