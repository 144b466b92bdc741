"""`ds4ctl tokenize`: the token ids of a text or of a chat turn, as the daemon would use them."""

import click

from ds4ctl.options import home_option, json_option, open_client, read_input
from ds4ctl.output import write_json


@click.command()
@click.argument("text")
@click.option("--chat", is_flag=True, help="Render TEXT as a user's turn first.")
@click.option("--pieces", is_flag=True, help="Tell the text of each token too, one a line.")
@json_option
@home_option
def tokenize(text: str, chat: bool, pieces: bool, as_json: bool) -> None:
    """Turn TEXT ("-": standard input) into token ids."""
    if text == "-":
        text = read_input()

    from ds4_client import Text

    with open_client() as client:
        response = client.tokenize(text if chat else Text(text), pieces=pieces)
    ids = list(response.tokens.ids)
    if as_json:
        texts = [piece.piece.decode("utf-8", "replace") for piece in response.pieces]
        write_json({"ids": ids, "pieces": texts} if pieces else {"ids": ids})
    elif pieces:
        for piece in response.pieces:
            click.echo(f"{piece.id}\t{_readable(piece.piece)}")
    else:
        click.echo(" ".join(map(str, ids)))


def _readable(piece: bytes) -> str:
    """The piece in quotes; as bytes where it is only a part of a character."""
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return repr(piece)
