"""`ds4ctl cancel`: stop a request, whoever runs it. `ds4ctl ps` lists them."""

import click

from ds4ctl.options import home_option, json_option, open_client
from ds4ctl.output import tell, write_json
from ds4ctl.request_find import find_request


@click.command()
@click.argument("request_id")
@json_option
@home_option
def cancel(request_id: str, as_json: bool) -> None:
    """Stop the request REQUEST_ID of any client. Fails when there is none."""
    from ds4_client import NotFoundError

    with open_client() as client:
        request_id = find_request(client, request_id)
        cancelled = client.cancel(request_id)
    if not cancelled:
        raise NotFoundError(
            "NO_SUCH_REQUEST",
            f"no request {request_id} runs or waits",
            "list them with `ds4ctl ps`",
        )
    if as_json:
        write_json({"cancelled": True})
    else:
        tell([f"cancelled {request_id}"])
