"""`ds4ctl chat`: a conversation, turn by turn, at a terminal or through a pipe.

Ctrl-C stops an answer and keeps what was said of it; Ctrl-D leaves. Through a pipe each line is a
turn and the first error ends the chat; at a terminal the turn is dropped and the chat goes on.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ds4ctl.explain import report
from ds4ctl.options import generation_options, home_option, json_option, open_client
from ds4ctl.output import Screen, enum_word, record, say, summary, write_json

if TYPE_CHECKING:
    from ds4_client import Client, Message

HELP = """\
/system TEXT   set the instructions and start anew; without TEXT: show them
/think on|off  reason before the answers that follow, or do not
/reset         forget the conversation, keep the instructions
/help          this list
/quit          leave, as Ctrl-D does
A line that begins with // is sent with one of them."""

# Enough to find yesterday's question, small enough to read at every start.
_HISTORY_LINES = 1000


@click.command()
@generation_options
@json_option
@home_option
def chat(
    as_json: bool,
    system: str | None,
    thinking: bool | None,
    effort: Any,
    show_reasoning: bool | None,
    **options: Any,
) -> None:
    """Talk with the model. Ctrl-C stops an answer, Ctrl-D leaves, /help lists commands."""
    with open_client() as client:
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        talk = _Chat(client, as_json, thinking, effort, show_reasoning, options, system)
        if interactive:
            _greet(client)
        else:
            client.health()  # before a line is read: is anybody there?
        with _history(client.address.home.history_file) if interactive else _nothing():
            for line in _lines(interactive):
                if not talk.take(line, interactive):
                    break


@dataclass(slots=True)
class _Chat:
    """The conversation so far and how to go on with it."""

    client: "Client"
    as_json: bool
    thinking: bool | None
    effort: Any
    show_reasoning: bool | None
    options: dict[str, Any]
    system: str | None
    turns: "list[Message]" = field(default_factory=list)

    def take(self, line: str, interactive: bool) -> bool:
        """Act on one line. False: leave."""
        if line.startswith("/") and not line.startswith("//"):
            return self._command(*line.split(maxsplit=1))
        text = line.removeprefix("/") if line.startswith("//") else line
        if not text.strip():
            return True

        from ds4_client import AccessError, ConfigurationError, Ds4Error, NotRunningError

        try:
            self._answer(text)
        except (AccessError, ConfigurationError, NotRunningError):
            raise
        except Ds4Error as error:
            if not interactive:
                raise
            report(error, as_json=self.as_json)
        return True

    def _answer(self, text: str) -> None:
        """One turn. It is a part of the conversation once something was answered."""
        from ds4_client import Chat, Collector, Message

        system = [Message("system", self.system)] if self.system else []
        question = Message("user", text)
        asked = Chat([*system, *self.turns, question], thinking=self.thinking, effort=self.effort)
        screen = Screen(show_reasoning=self.show_reasoning, quiet=self.as_json)
        collector = Collector()
        try:
            with self.client.generate(asked, **self.options) as stream:
                for event in stream:
                    collector.add(event)
                    screen.show(event)
        except KeyboardInterrupt:
            screen.end()
            say("stopped")
            if collector.text:
                answer = Message("assistant", collector.text, reasoning=collector.reasoning)
                self.turns += [question, answer]
            return
        except BaseException:
            screen.end()
            raise
        completion = collector.completion()
        self.turns += [question, completion.message]
        screen.end(summary(completion))
        if self.as_json:
            write_json(record(completion))

    def _command(self, name: str, rest: str = "") -> bool:
        rest = rest.strip()
        match name:
            case "/quit" | "/exit":
                return False
            case "/reset":
                self.turns.clear()
                say("the conversation is forgotten")
            case "/system" if rest:
                self.system = rest
                self.turns.clear()
                say("the instructions are set")
            case "/system":
                say(self.system or "there are no instructions")
            case "/think" if rest in ("on", "off"):
                self.thinking = rest == "on"
                say(f"reasoning is {rest}")
            case "/help":
                say(HELP)
            case _:
                say(f"no such command: {name} {rest}".rstrip() + "; /help lists them")
        return True


def _greet(client: "Client") -> None:
    status = client.status()
    model, process = status.model, status.process
    if status.HasField("model"):
        say(f"{model.name} on {model.device}, {model.context_tokens:,} tokens of context")
    else:
        state = process.DESCRIPTOR.fields_by_name["state"].enum_type
        say(f"no model is loaded: the daemon is {enum_word(state, process.state)}")
    say("/help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")


def _lines(interactive: bool) -> Iterator[str]:
    """The lines typed or piped in, without their ends."""
    while True:
        try:
            if interactive:
                yield input("> ")
            elif line := sys.stdin.readline():
                line.encode()  # some locales let bytes that are no text pass, as surrogates
                yield line.removesuffix("\n")
            else:
                return
        except UnicodeError as error:
            raise click.UsageError(f"standard input is not UTF-8 text: {error}") from error
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            say("\nCtrl-D leaves")


@contextlib.contextmanager
def _history(path: Path) -> Iterator[None]:
    """Lines of earlier chats under the arrow keys. Without readline or the file, there are none."""
    try:
        import readline
    except ImportError:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        umask = os.umask(0o077)
        with contextlib.suppress(OSError):
            readline.write_history_file(path)
        os.umask(umask)


def _nothing() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
