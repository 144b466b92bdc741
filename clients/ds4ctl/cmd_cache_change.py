"""`ds4ctl cache evict, pin, unpin, verify, compact, purge`: the commands that change the cache."""

import sys
from typing import TYPE_CHECKING

import click

from ds4ctl.cache_find import Choice, find_fingerprint, find_key
from ds4ctl.cache_options import (
    SIZE,
    SPAN,
    key_digits,
    known_name,
    open_cache,
    pin_name,
    selection_options,
)
from ds4ctl.cache_text import many, size, span
from ds4ctl.options import home_option, json_option
from ds4ctl.output import Transient, plain, say, tell, write_json
from ds4ctl.prefix_table import prefix_table

if TYPE_CHECKING:
    from ds4.v1.kvstore_pb2 import PurgeResponse

dry_run_option = click.option("--dry-run", is_flag=True, help="Only tell what would go.")


@click.command(short_help="Drop what is selected, least valuable first.")
@selection_options
@click.option("--to-size", type=SIZE, metavar="SIZE", help="Stop when no more than SIZE is used.")
@click.option("--all", "everything", is_flag=True, help="Evict all that nothing protects.")
@dry_run_option
@json_option
@home_option
def evict(
    chosen: Choice, to_size: float | None, everything: bool, dry_run: bool, as_json: bool
) -> None:
    """Drop what is selected, least valuable first. What is pinned, in use or just stored stays.

    Conditions hold together; with --to-size it stops as soon as no more than that is used.
    """
    if chosen.anything and to_size is None and not everything:
        raise click.UsageError("nothing says what to evict: give a condition, --to-size or --all")
    # The contract's 0 means "all": a target of 0 bytes is that too.
    to_bytes = int(to_size or 0)
    with open_cache() as client:
        answer = client.evict(chosen.selection(client), to_bytes=to_bytes, dry_run=dry_run)
        used = sum(one.stored_bytes for one in client.stat().total.classes)
    if as_json:
        write_json(plain(answer))
        return
    if answer.prefixes:
        tell(prefix_table(answer.prefixes))
    verb = "would go" if dry_run else "went"
    amount = f" of {size(answer.bytes)}" if answer.records else ""
    tell([f"{many(answer.records, 'record')}{amount} {verb}"])
    if kept := answer.protected_records:
        say(f"{many(kept, 'record')} stayed: pinned, in use or just stored")
    left = used - answer.bytes if dry_run else used
    if to_bytes and left > to_bytes:
        say(f"{size(left)} are used still: not selected, pinned, in use or just stored")


@click.command(short_help="Protect a prefix from eviction.")
@click.argument("key", callback=key_digits)
@click.option(
    "--name",
    required=True,
    callback=pin_name,
    metavar="NAME",
    help="Name to take it away by; one in use moves here.",
)
@click.option("--ttl", type=SPAN, metavar="TIME", help="How long, such as 12h; else for good.")
@json_option
@home_option
def pin(key: str, name: str, ttl: float | None, as_json: bool) -> None:
    """Protect the prefix that ends with the block KEY from eviction. `purge` deletes it still."""
    with open_cache() as client:
        prefix = client.pin(find_key(client, key), name, ttl or 0)
    if as_json:
        write_json(plain(prefix))
        return
    how_long = f"for {span(ttl)}" if ttl else f"until `ds4ctl cache unpin {name}`"
    tell([f"pinned {prefix.tokens:,} tokens of {size(prefix.bytes)} as {name}, {how_long}"])


@click.command()
@click.argument("name", callback=known_name)
@json_option
@home_option
def unpin(name: str, as_json: bool) -> None:
    """Take the pin NAME away; `ds4ctl cache ls` shows pins."""
    with open_cache() as client:
        prefix = client.unpin(name)
    if as_json:
        write_json(plain(prefix))
    else:
        tell([f"unpinned {name}"])


@click.command(short_help="Compare what is stored with its checksums.")
@selection_options
@click.option(
    "--structure",
    "structure_only",
    is_flag=True,
    help="Check parents and counters only; read no records.",
)
@click.option("--repair", is_flag=True, help="Delete what is bad and what hangs on it.")
@json_option
@home_option
def verify(chosen: Choice, structure_only: bool, repair: bool, as_json: bool) -> int:
    """Compare what is stored with its checksums. Leaves with 1 when something is bad."""
    findings = []
    checked = bad = 0
    with open_cache() as client, Transient() as progress:
        reports = client.verify(
            chosen.selection(client), structure_only=structure_only, repair=repair
        )
        for report in reports:
            checked, bad = report.checked_records, report.bad_records
            found = [one.message for one in report.findings]
            findings += found
            if found and not as_json:
                progress.show("")
                tell(found)
            progress.show(f"{checked:,} of {report.total_records:,} records")
    if as_json:
        write_json({"checked_records": checked, "bad_records": bad, "findings": findings})
    else:
        tell([f"{many(checked, 'record')} checked, {bad:,} bad" + _repaired(bad, repair)])
    return 1 if bad else 0


def _repaired(bad: int, repair: bool) -> str:
    if not bad:
        return ""
    return ": deleted" if repair else "; delete what is bad with --repair"


@click.command(short_help="Write the files anew without their free pages.")
@click.option(
    "--fingerprint", callback=key_digits, metavar="HEX", help="Of the fingerprint that begins so."
)
@json_option
@home_option
def compact(fingerprint: str | None, as_json: bool) -> None:
    """Write the files anew without their free pages. Needs room for them beside the old ones."""
    with open_cache() as client:
        answer = client.compact(find_fingerprint(client, fingerprint))
    if as_json:
        write_json(plain(answer))
    else:
        tell([f"files took {size(answer.before_bytes)}, now {size(answer.after_bytes)}"])


@click.command(short_help="Delete for good, pinned or not.")
@click.option(
    "--fingerprint", callback=key_digits, metavar="HEX", help="All of the one that begins so."
)
@click.option("--salt", metavar="SALT", help="All of this salt; '' is the common one.")
@click.option(
    "--old",
    is_flag=True,
    help="All that no daemon has opened since ds4-kvcache started, and what was set aside. Daemons "
    "that idle open theirs within a minute.",
)
@dry_run_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@home_option
def purge(
    fingerprint: str | None, salt: str | None, old: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Delete for good, pinned or not, after a question. Conditions hold together."""
    if fingerprint is None and salt is None and not old:
        raise click.UsageError("nothing says what to purge: give --fingerprint, --salt or --old")
    if as_json and not (dry_run or yes):
        raise click.UsageError("--json asks nothing: give --yes to delete, --dry-run to look")
    with open_cache() as client:
        digest = find_fingerprint(client, fingerprint)

        def ask(dry: bool) -> "PurgeResponse":
            return client.purge(fingerprint=digest, salt=salt, unused=old, dry_run=dry)

        if not (dry_run or yes):
            planned = ask(dry=True)
            if planned.stores or planned.records:
                _confirm(_amount(planned))
        answer = ask(dry=dry_run)
    if as_json:
        write_json(plain(answer))
    elif answer.stores or answer.records:
        tell([f"{_amount(answer)} {'would go' if dry_run else 'went'}"])
    else:
        say("nothing that is stored is selected")


def _amount(answer: "PurgeResponse") -> str:
    records = f"{many(answer.records, 'record')} of {size(answer.bytes)}"
    if not answer.stores:
        return records
    # What was set aside is a file that nobody reads, so its records are not counted.
    rest = f"with {records}" if answer.records else f"of {size(answer.bytes)}"
    return f"{many(answer.stores, 'store')} {rest}"


def _confirm(amount: str) -> None:
    """Ask before deleting. Raises InvalidRequestError when the answer is not yes."""
    from ds4_client import InvalidRequestError

    sys.stderr.write(f"Delete {amount} for good? [y/N] ")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):  # the end of the input, not of a line
        sys.stderr.write("\n")
    if answer.strip().lower() not in ("y", "yes"):
        raise InvalidRequestError(
            "NOT_CONFIRMED", "nothing was deleted", "answer y, or give --yes to be asked nothing"
        )


COMMANDS = (evict, pin, unpin, verify, compact, purge)
