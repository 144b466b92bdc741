"""`ds4ctl run`: one prompt, one answer. The answer is all that standard output gets."""

import sys
from typing import TYPE_CHECKING, Any

import click

from ds4ctl.options import (
    COUNT,
    generation_options,
    home_option,
    json_option,
    open_client,
    read_input,
)
from ds4ctl.output import Screen, record, summary, write_json

if TYPE_CHECKING:
    from ds4_client import Prompt


@click.command()
@click.argument("prompt", required=False)
@click.option("--raw", is_flag=True, help="Continue PROMPT as plain text instead of answering it.")
@click.option("--logprobs", is_flag=True, help="With --json: tell each token's log probability.")
@click.option(
    "--top-logprobs",
    type=COUNT,
    default=0,
    metavar="N",
    help="With --logprobs: N others beside it.",
)
@click.option("--quiet", is_flag=True, help="No line about speed and usage.")
@generation_options
@json_option
@home_option
def run(
    prompt: str | None,
    raw: bool,
    quiet: bool,
    as_json: bool,
    system: str | None,
    thinking: bool | None,
    effort: Any,
    show_reasoning: bool | None,
    **options: Any,
) -> None:
    """Answer PROMPT, or what standard input holds if it is absent or "-".

    Tokens go to standard output as they come, speed and usage to standard error.
    """
    if options["logprobs"] and not as_json:
        raise click.UsageError("--logprobs needs --json")
    if options["top_logprobs"] and not options["logprobs"]:
        raise click.UsageError("--top-logprobs needs --logprobs")
    if raw and (system is not None or thinking is not None or effort is not None):
        raise click.UsageError("--raw has no system prompt and no reasoning")
    if prompt is None and sys.stdin.isatty():
        raise click.UsageError("no prompt: give one as an argument or on standard input")
    text = read_input() if prompt is None or prompt == "-" else prompt
    if not raw:
        # What a shell adds to a line is not a part of the question.
        text = text.removesuffix("\n")
        if not text.strip():
            raise click.UsageError("the prompt is empty")

    from ds4_client import Chat, Collector, Message, Text

    asked: Prompt = Text(text)
    if not raw:
        turns = [Message("system", system)] if system else []
        asked = Chat([*turns, Message("user", text)], thinking=thinking, effort=effort)
    screen, collector = Screen(show_reasoning=show_reasoning, quiet=as_json), Collector()
    try:
        with open_client() as client, client.generate(asked, **options) as stream:
            for event in stream:
                collector.add(event)
                screen.show(event)
    finally:
        screen.end()
    completion = collector.completion()
    if as_json:
        write_json(record(completion))
    elif not quiet:
        screen.end(summary(completion))
