"""`ds4ctl run`: one prompt, one answer. The answer is all that standard output gets."""

from typing import Any

import click

from ds4ctl.asking import prompt_of
from ds4ctl.options import COUNT, generation_options, home_option, json_option, open_client
from ds4ctl.output import Screen, record, say, summary, tell, write_json


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
@click.option(
    "--detach", is_flag=True, help="Write the request's id and leave; `ds4ctl attach` follows it."
)
@generation_options
@json_option
@home_option
def run(
    prompt: str | None,
    raw: bool,
    quiet: bool,
    detach: bool,
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
    if options["logprobs"] and not (as_json or detach):
        raise click.UsageError("--logprobs needs --json")
    if options["top_logprobs"] and not options["logprobs"]:
        raise click.UsageError("--top-logprobs needs --logprobs")
    asked = prompt_of(prompt, raw=raw, system=system, thinking=thinking, effort=effort)

    from ds4_client import Accepted, Collector

    if detach:
        with open_client() as client, client.generate(asked, detach=True, **options) as stream:
            # Left once it has its place: from then on it needs nobody.
            request_id = next(one.request_id for one in stream if isinstance(one, Accepted))
        if as_json:
            write_json({"request_id": request_id})
        else:
            tell([request_id])
            if not quiet:
                say(f"it runs; follow it with `ds4ctl attach {request_id}`")
        return
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
