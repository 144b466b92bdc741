"""`ds4ctl attach`: show a request that was sent with `run --detach`, from its beginning to its end.

Leaving it stops nothing: the request goes on, and can be attached to again.
"""

import click

from ds4ctl.options import COUNT, home_option, json_option, open_client
from ds4ctl.output import Screen, record, say, summary, write_json
from ds4ctl.request_find import find_request


@click.command()
@click.argument("request_id")
@click.option(
    "--offset",
    type=COUNT,
    default=0,
    metavar="N",
    help="Begin with event N of the request instead of its first.",
)
@click.option("--quiet", is_flag=True, help="No line about speed and usage.")
@click.option(
    "--reasoning/--no-reasoning",
    "show_reasoning",
    default=None,
    help="Show the reasoning on standard error? By default if that is a terminal.",
)
@json_option
@home_option
def attach(
    request_id: str, offset: int, quiet: bool, show_reasoning: bool | None, as_json: bool
) -> None:
    """Show the answer to REQUEST_ID, as far as it is there, and follow it to its end.

    Requests that ended are kept for a while. Ctrl-C leaves the request running.
    """
    from ds4_client import Collector

    if offset and as_json:
        raise click.UsageError("--json tells the whole answer, so it takes no --offset")
    screen, collector = Screen(show_reasoning=show_reasoning, quiet=as_json), Collector()
    try:
        with open_client() as client:
            request_id = find_request(client, request_id)
            with client.attach(request_id, offset) as stream:
                for event in stream:
                    collector.add(event)
                    screen.show(event)
    except KeyboardInterrupt:
        screen.end()
        say(f"it goes on; come back with `ds4ctl attach {request_id}`")
        raise
    finally:
        screen.end()
    if as_json:
        write_json(record(collector.completion()))
    elif not quiet and not offset:
        screen.end(summary(collector.completion()))
