"""`ds4ctl cache evict, pin, unpin, verify, compact, purge`: the commands that change the cache."""

from typing import TYPE_CHECKING

import click

from ds4ctl.cache_options import SIZE, SPAN, hexadecimal, open_cache, selection_options
from ds4ctl.cache_text import prefix_lines, size
from ds4ctl.options import home_option, json_option
from ds4ctl.output import plain, write_json

if TYPE_CHECKING:
    from ds4.v1.kvstore_pb2 import Selection

dry_run_option = click.option("--dry-run", is_flag=True, help="Only tell what would go.")


@click.command()
@selection_options
@click.option("--to-size", type=SIZE, metavar="SIZE", help="Stop when no more than SIZE is used.")
@click.option("--all", "everything", is_flag=True, help="Evict all that nothing protects.")
@dry_run_option
@json_option
@home_option
def evict(
    chosen: "Selection", to_size: float | None, everything: bool, dry_run: bool, as_json: bool
) -> None:
    """Drop what is selected, least valuable first. What is pinned or in use stays."""
    if not (chosen.ListFields() or to_size is not None or everything):
        raise click.UsageError("nothing says what to evict: give a condition, --to-size or --all")
    with open_cache() as client:
        # The contract's 0 means "all": a target of 0 bytes is that too.
        answer = client.evict(chosen, to_bytes=int(to_size or 0), dry_run=dry_run)
    if as_json:
        write_json(plain(answer))
        return
    for prefix in answer.prefixes:
        click.echo("\n".join(prefix_lines(prefix, "")))
    kept = f", {answer.protected_records:,} are protected" if answer.protected_records else ""
    verb = "would go" if dry_run else "went"
    click.echo(f"{answer.records:,} records of {size(answer.bytes)} {verb}{kept}")


@click.command()
@click.argument("key", callback=hexadecimal)
@click.option("--name", required=True, metavar="NAME", help="Name to take it away by.")
@click.option("--ttl", type=SPAN, metavar="TIME", help="How long, such as 12h; else for good.")
@json_option
@home_option
def pin(key: bytes, name: str, ttl: float | None, as_json: bool) -> None:
    """Protect the prefix that ends with the block KEY."""
    with open_cache() as client:
        prefix = client.pin(key, name, ttl or 0)
    if as_json:
        write_json(plain(prefix))
    else:
        click.echo("\n".join(prefix_lines(prefix, "")))


@click.command()
@click.argument("name")
@json_option
@home_option
def unpin(name: str, as_json: bool) -> None:
    """Take the pin NAME away."""
    with open_cache() as client:
        prefix = client.unpin(name)
    if as_json:
        write_json(plain(prefix))
    else:
        click.echo(f"unpinned {name}")


@click.command()
@selection_options
@click.option("--structure", "structure_only", is_flag=True, help="Read no records.")
@click.option("--repair", is_flag=True, help="Delete what is bad and what hangs on it.")
@json_option
@home_option
def verify(chosen: "Selection", structure_only: bool, repair: bool, as_json: bool) -> int:
    """Compare what is stored with its checksums. Leaves with 1 when something is bad."""
    findings = []
    with open_cache() as client:
        for report in client.verify(chosen, structure_only=structure_only, repair=repair):
            findings += [one.message for one in report.findings]
            if not as_json:
                for one in report.findings:
                    click.echo(one.message)
    bad = report.bad_records
    if as_json:
        write_json(
            {"checked_records": report.checked_records, "bad_records": bad, "findings": findings}
        )
    else:
        end = ": deleted" if bad and repair else ""
        click.echo(f"{report.checked_records:,} records checked, {bad:,} bad{end}")
    return 1 if bad else 0


@click.command()
@click.option(
    "--fingerprint",
    default="",
    callback=hexadecimal,
    metavar="HEX",
    help="Of this fingerprint only.",
)
@json_option
@home_option
def compact(fingerprint: bytes, as_json: bool) -> None:
    """Write the files anew without their free pages. Needs room for them beside the old ones."""
    with open_cache() as client:
        answer = client.compact(fingerprint)
    if as_json:
        write_json(plain(answer))
    else:
        click.echo(f"{size(answer.before_bytes)} before, {size(answer.after_bytes)} after")


@click.command()
@click.option(
    "--fingerprint",
    default="",
    callback=hexadecimal,
    metavar="HEX",
    help="All of this fingerprint.",
)
@click.option("--salt", metavar="SALT", help="All of this salt.")
@click.option("--old", is_flag=True, help="All that no daemon has opened, and what was set aside.")
@dry_run_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@home_option
def purge(
    fingerprint: bytes, salt: str | None, old: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Delete for good, pinned or not."""
    if not (fingerprint or salt is not None or old):
        raise click.UsageError("nothing says what to purge: give --fingerprint, --salt or --old")
    if not (dry_run or yes or as_json):
        click.confirm("Delete it for good?", abort=True)
    with open_cache() as client:
        answer = client.purge(fingerprint=fingerprint, salt=salt, unused=old, dry_run=dry_run)
    if as_json:
        write_json(plain(answer))
    else:
        verb = "would go" if dry_run else "went"
        click.echo(
            f"{answer.stores:,} stores, {answer.records:,} records, {size(answer.bytes)} {verb}"
        )


COMMANDS = (evict, pin, unpin, verify, compact, purge)
