"""`ds4ctl cache`: the KV cache on disk. This file has the group and the commands that only look.

`cmd_cache_change` has those that change something, `cache_text` and `prefix_table` how all of it
reads.
"""

import shutil
import sys

import click

from ds4ctl.cache_find import Choice, find_key
from ds4ctl.cache_options import key_digits, open_cache, selection_options
from ds4ctl.cache_text import block_lines, stat_lines
from ds4ctl.options import home_option, json_option
from ds4ctl.output import plain, say, tell, write_json
from ds4ctl.prefix_table import HEAD, WIDTH, prefix_rows, tree_lines

EPILOG = (
    "KEY is as many of the first digits of a key as tell it from all others; `ls` shows sixteen. "
    "Sizes are written 500MB, 20GB or 16GiB; times 90s, 12h or 7d."
)


@click.group(epilog=EPILOG)
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
        tell(stat_lines(answer))


@cache.command("ls", short_help="List stored prefixes, most recently used first.")
@selection_options
@click.option(
    "-n",
    "most",
    type=click.IntRange(1, 2**32 - 1),
    default=20,
    metavar="N",
    help="Show N at most, not 20.",
)
@click.option("--all", "show_all", is_flag=True, help="Show all.")
@json_option
@home_option
def list_(chosen: Choice, most: int, show_all: bool, as_json: bool) -> None:
    """List stored prefixes, most recently used first: one JSON object a line with --json.

    USED and STORED tell how long ago, HITS how often it was restored, SAVED the time that computing
    it would have taken. Its text is shown where the daemon has its model loaded.
    """
    import itertools

    from ds4ctl.prefix_text import Texts

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 100
    shown = left = 0
    with open_cache() as client, Texts() as texts:
        found = client.list(chosen.selection(client))
        for prefix in found if show_all else itertools.islice(found, most):
            text = texts.of(prefix.fingerprint, prefix.first_token_ids)
            if as_json:
                write_json({**plain(prefix), "first_text": text})
            else:
                tell([*([] if shown else [HEAD]), *prefix_rows(prefix, text, max(width, WIDTH))])
            shown += 1
        if not as_json and not show_all:
            left = sum(1 for _ in found)
    if as_json:
        return
    if left:
        say(f"… and {left:,} more; see them with --all")
    if not shown:
        say("the cache is empty" if chosen.anything else "nothing that is stored is selected")


@cache.command(short_help="Show where prefixes part.")
@click.argument("key", required=False, callback=key_digits)
@json_option
@home_option
def tree(key: str | None, as_json: bool) -> None:
    """Show where prefixes part: all of them, or what is below the block KEY.

    A line is a stretch of blocks in which nothing parts, named by the key of its last block.
    """
    with open_cache() as client:
        nodes = client.inspect(find_key(client, key), levels=2**20, brief=True).nodes
    if as_json:
        write_json({"nodes": [plain(node) for node in nodes]})
    elif nodes:
        tell(tree_lines(list(nodes)))
    else:
        say("the cache is empty")


@cache.command(short_help="Show one block: records, tokens, value, protection.")
@click.argument("key", callback=key_digits)
@click.option(
    "--levels",
    type=click.IntRange(0, 1000),
    default=0,
    metavar="N",
    help="Show N levels of blocks after it too.",
)
@json_option
@home_option
def inspect(key: str, levels: int, as_json: bool) -> None:
    """Show the block KEY: its records, tokens, value and what protects it from eviction."""
    from ds4ctl.prefix_text import Texts

    with open_cache() as client, Texts() as texts:
        nodes = client.inspect(find_key(client, key), levels=levels).nodes
        if as_json:
            write_json({"nodes": [plain(node) for node in nodes]})
            return
        for node in nodes:
            tell(block_lines(node, texts.of(node.fingerprint, node.token_ids)))
