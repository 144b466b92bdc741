"""What ds4ctl writes: the answer on standard output, all that is about it on standard error.

`Screen` shows one answer as it comes; `tell` writes lines for people; `record` is the JSON object
of a whole answer; `plain` turns any message of the contract into what JSON can say. docs/json.md is
the contract of the latter two.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from ds4_client import Completion, Event, Logprob, Progress, ToolCallDelta
    from google.protobuf.message import Message

# What a terminal obeys instead of showing: a model must not move its cursor or set its title.
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "\ufffd")
_CONTROLS |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}


class Transient:
    """A line on standard error that the next one replaces; none where that is no terminal.

    As a context it is gone at the end.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = False

    def show(self, line: str) -> None:
        """Write it in the place of the one before; empty: take that away."""
        if self._terminal and (line or self._shown):
            width = shutil.get_terminal_size().columns
            sys.stderr.write("\r\x1b[K" + dim(line[: width - 1]))
            sys.stderr.flush()
        self._shown = bool(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.show("")


class Screen:
    """Shows one answer. Its reasoning and progress never mix into standard output."""

    def __init__(self, *, show_reasoning: bool | None, quiet: bool) -> None:
        """`show_reasoning` None: if standard error is a terminal. `quiet`: only progress."""
        terminal = sys.stderr.isatty()
        self._quiet = quiet
        self._show_reasoning = terminal if show_reasoning is None else show_reasoning
        self._progress = Transient()
        self._open_out = False  # standard output is inside a line
        self._open_err = False

    def show(self, event: "Event") -> None:
        """Write what an event adds, at once."""
        from ds4_client import Delta, Progress

        match event:
            case Progress():
                self._progress.show(_progress_line(event))
            case Delta():
                self._progress.show("")
                if not self._quiet:
                    self._delta(event.content, event.reasoning, event.tool_call)
            case _:
                pass

    def _delta(self, content: str, reasoning: str, tool_call: "ToolCallDelta | None") -> None:
        if reasoning and self._show_reasoning:
            self._err(reasoning)
        if tool_call is not None:
            if tool_call.name:
                self._end_err()
                self._err(f"tool call {tool_call.name} ")
            self._err(tool_call.arguments_fragment)
        if content:
            self._end_err()
            sys.stdout.write(_harmless(content, sys.stdout))
            sys.stdout.flush()
            self._open_out = not content.endswith("\n")

    def end(self, note: str = "") -> None:
        """End open lines, then say `note` about the answer."""
        self._progress.show("")
        self._end_err()
        if self._open_out:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._open_out = False
        if note and not self._quiet:
            say(note)

    def _err(self, text: str) -> None:
        sys.stderr.write(dim(_harmless(text, sys.stderr)))
        sys.stderr.flush()
        self._open_err = True

    def _end_err(self) -> None:
        if self._open_err:
            sys.stderr.write("\n")
            sys.stderr.flush()
            self._open_err = False


def _harmless(text: str, stream: TextIO) -> str:
    """The model's text as a terminal may show it; what goes elsewhere stays as it is."""
    return harmless(text) if stream.isatty() else text


def harmless(text: str) -> str:
    """Text of several lines without what a terminal would obey."""
    return text.translate(_CONTROLS)


def printable(text: str) -> str:
    """Text of others as a part of one line: what a terminal would obey is written as its escape.

    Line ends are escaped too: a name must not look like a line of ours.
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def tell(lines: Iterable[str]) -> None:
    """Lines for people on standard output, each of them one line whatever is in it."""
    for line in lines:
        sys.stdout.write(printable(line) + "\n")
    sys.stdout.flush()


def dim(text: str) -> str:
    """Fainter, where standard error is a terminal that may show colours."""
    if not text or not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[2m{text}\x1b[22m"


def say(note: str) -> None:
    """A line about the work, on standard error."""
    sys.stderr.write(dim(harmless(note)) + "\n")
    sys.stderr.flush()


def write_json(value: object) -> None:
    """One line of JSON on standard output, in ASCII so that no locale can break it."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _progress_line(progress: "Progress") -> str:
    if progress.phase == "queued":
        return f"waiting, {progress.queue_position} before"
    line = f"{progress.phase} {progress.prefilled_tokens:,} of {progress.total_tokens:,} tokens"
    if progress.tokens_per_s:
        line += f" · {progress.tokens_per_s:,.0f} tok/s"
    if progress.eta_s is not None:
        line += f" · {progress.eta_s:.0f} s left"
    return line


def summary(completion: "Completion") -> str:
    """Speed and usage of an answer, for a person."""
    usage = completion.usage
    live, restored = usage.cached_live_tokens, usage.cached_restored_tokens
    cached = [f"{live:,} found in memory"] if live else []
    cached += [f"{restored:,} restored from disk"] if restored else []
    parts = [
        f"{usage.prompt_tokens:,} prompt tokens" + (f" ({', '.join(cached)})" if cached else ""),
        f"{usage.completion_tokens:,} tokens"
        + (f" ({usage.reasoning_tokens:,} of reasoning)" if usage.reasoning_tokens else ""),
        f"{usage.decode_tok_s:,.1f} tok/s",
    ]
    if usage.ttft_ms:
        parts.append(f"first after {usage.ttft_ms:,.0f} ms")
    if completion.finish_reason == "length":
        parts.append("cut at the most tokens allowed")
    return " · ".join(parts)


def record(completion: "Completion") -> dict[str, Any]:
    """An answer as `run --json` and `chat --json` write it."""
    usage = completion.usage
    said: dict[str, Any] = {
        "text": completion.text,
        "reasoning": completion.reasoning,
        "tool_calls": [
            {"id": call.id, "name": call.name, "arguments": call.arguments}
            for call in completion.tool_calls
        ],
        "finish_reason": str(completion.finish_reason),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cached_live": usage.cached_live_tokens,
        "cached_restored": usage.cached_restored_tokens,
        "miss_reason": usage.miss_reason,
        "queue_ms": _short(usage.queue_ms),
        "ttft_ms": _short(usage.ttft_ms),
        "prefill_tok_s": _short(usage.prefill_tok_s),
        "decode_tok_s": _short(usage.decode_tok_s),
        "seed": completion.seed,
        "request_id": completion.request_id,
    }
    if completion.logprobs:
        said["logprobs"] = [
            {**_logprob(one.chosen), "top": [_logprob(other) for other in one.top]}
            for one in completion.logprobs
        ]
    return said


def _logprob(one: "Logprob") -> dict[str, Any]:
    return {
        "id": one.token_id,
        "text": one.piece.decode("utf-8", "replace"),
        "bytes": list(one.piece),
        "logprob": _short(one.logprob),
    }


def plain(message: "Message") -> dict[str, Any]:
    """A message of the contract: every field by its name, null where it is not set.

    Enums are their names in lower case without their prefix, bytes are hexadecimal.
    """
    said: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            said[field.name] = [_plain_value(field, one) for one in value]
        elif field.has_presence and not message.HasField(field.name):
            said[field.name] = None
        else:
            said[field.name] = _plain_value(field, value)
    return said


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    if isinstance(value, bytes):
        return value.hex()
    return _short(value) if isinstance(value, float) else value


def enum_word(enum: Any, number: int) -> str:
    """The name of an enum's number: PROCESS_STATE_SERVING reads "serving"."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    value = enum.values_by_number.get(number)
    return value.name.removeprefix(prefix).lower() if value else "unspecified"


def _short(number: float) -> float:
    """Without the digits that a 32 bit float never had."""
    return float(f"{number:.6g}")
