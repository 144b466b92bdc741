"""`ds4ctl cache`: the KV cache on disk. This file has the group and the commands that only look.

`cmd_cache_change` has those that change something, `cache_text` how it all reads.
"""

from typing import TYPE_CHECKING

import click

from ds4ctl.cache_options import hexadecimal, open_cache, selection_options
from ds4ctl.cache_text import block_lines, prefix_lines, stat_lines, tree_lines
from ds4ctl.options import home_option, json_option
from ds4ctl.output import plain, write_json

if TYPE_CHECKING:
    from ds4.v1.kvstore_pb2 import Selection


@click.group()
@home_option
def cache() -> None:
    """Look at the KV cache of ds4-kvcache, check it and tidy it up."""


@cache.command()
@json_option
@home_option
def stat(as_json: bool) -> None:
    """Tell what the cache holds, what it saved, and what it may take."""
    with open_cache() as client:
        answer = client.stat()
    if as_json:
        write_json(plain(answer))
    else:
        click.echo("\n".join(stat_lines(answer)))


@cache.command("ls")
@selection_options
@click.option("-n", "most", type=click.IntRange(1), default=20, help="Show N at most.")
@click.option("--all", "show_all", is_flag=True, help="Show all.")
@json_option
@home_option
def list_(chosen: "Selection", most: int, show_all: bool, as_json: bool) -> None:
    """List stored prefixes, most recently used first: one JSON object a line with --json."""
    import itertools

    from ds4ctl.prefix_text import Texts

    with open_cache() as client, Texts() as texts:
        found = client.list(chosen)
        for prefix in found if show_all else itertools.islice(found, most):
            text = texts.of(prefix)
            if as_json:
                write_json({**plain(prefix), "first_text": text})
            else:
                click.echo("\n".join(prefix_lines(prefix, text)))
        left = 0 if show_all else sum(1 for _ in found)
    if left and not as_json:
        click.echo(f"… and {left} more; see them with --all", err=True)


@cache.command()
@click.argument("key", required=False, default="", callback=hexadecimal)
@json_option
@home_option
def tree(key: bytes, as_json: bool) -> None:
    """Show where prefixes part: all of them, or what is below the block KEY."""
    with open_cache() as client:
        nodes = client.inspect(key, levels=2**20, brief=True).nodes
    if as_json:
        write_json({"nodes": [plain(node) for node in nodes]})
    else:
        click.echo("\n".join(tree_lines(list(nodes))) or "nothing is stored")


@cache.command()
@click.argument("key", callback=hexadecimal)
@click.option("--levels", type=click.IntRange(0, 1000), default=0, help="Show children too.")
@json_option
@home_option
def inspect(key: bytes, levels: int, as_json: bool) -> None:
    """Show the block KEY: its records, tokens, value and what protects it."""
    with open_cache() as client:
        nodes = client.inspect(key, levels=levels).nodes
    if as_json:
        write_json({"nodes": [plain(node) for node in nodes]})
    else:
        for node in nodes:
            click.echo("\n".join(block_lines(node)))
