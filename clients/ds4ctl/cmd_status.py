"""`ds4ctl status`: how the daemon is, for a person or as JSON; and waiting until it serves."""

from typing import TYPE_CHECKING, Any

import click

from ds4ctl.cache_options import open_cache
from ds4ctl.cache_text import many, size, stat_lines
from ds4ctl.options import home_option, json_option, number, open_client
from ds4ctl.output import enum_word, plain, tell, write_json

if TYPE_CHECKING:
    from ds4.v1.admin_pb2 import (
        EngineStatus,
        KvLinkStatus,
        RequestStatus,
        StatusResponse,
        Totals,
    )

# How the daemon is must not wait for another process.
_CACHE_TIMEOUT_S = 2.0


@click.command()
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0),
    metavar="S",
    callback=number,
    help="Wait up to S seconds to be served.",
)
@json_option
@home_option
def status(wait_s: float | None, as_json: bool) -> None:
    """Tell what the daemon has loaded and what it does."""
    with open_client() as client:
        if wait_s is not None and not client.wait(wait_s):
            from ds4_client import DeadlineError

            raise DeadlineError(
                "NOT_SERVING",
                f"the daemon does not serve after {wait_s:g} s",
                "see what it does with `ds4ctl status`",
            )
        response = client.status()
    _add_cache(response)
    if as_json:
        write_json(plain(response))
    else:
        tell(_lines(response))


def _add_cache(response: "StatusResponse") -> None:
    """What the KV cache says of itself, where it runs; the daemon does without it too."""
    from ds4_client import Ds4Error

    if response.HasField("kv_cache"):
        return
    try:
        with open_cache() as cache:
            response.kv_cache.CopyFrom(cache.stat(timeout_s=_CACHE_TIMEOUT_S))
    except Ds4Error:
        return


def _lines(response: "StatusResponse") -> list[str]:
    process, model = response.process, response.model
    head = f"{process.name} {process.version}, process {process.pid}, "
    lines = [
        head + f"{_word(process, 'state')}, up {_duration(process.uptime_s)}",
        f"  home    {process.home}",
    ]
    if process.HasField("problem"):
        lines.append(f"  problem {process.problem.message} ({process.problem.hint})")
    if response.HasField("model"):
        where = f"{model.dtype} on {model.device}"
        lines += [
            f"  model   {model.name}",
            f"          {model.file_format}, {where}, {model.context_tokens:,} tokens of context",
        ]
    lines.append(f"  memory  {_size(process.resident_bytes)} resident")
    if response.HasField("engine"):
        lines += _engine(response.engine)
    if response.HasField("kv_link"):
        lines += _kv_link(response.kv_link)
    if response.HasField("kv_cache"):
        lines += stat_lines(response.kv_cache)
    return lines + [line for one in response.engine.requests for line in _request(one)]


def _engine(engine: "EngineStatus") -> list[str]:
    memory, totals = engine.memory, engine.totals
    generated = many(totals.generated_tokens, "token")
    return [
        f"          {_size(memory.weights_bytes)} weights, {_size(memory.state_bytes)} sequences",
        f"  engine  {engine.running} running, {engine.waiting} waiting",
        f"          {many(totals.requests, 'request')}, {generated} generated",
        *_prompts(totals),
        f"  speed   {engine.prefill_tok_s:,.0f} tok/s prefill, {engine.decode_tok_s:,.1f} decode",
    ]


def _prompts(totals: "Totals") -> list[str]:
    """Where the tokens of prompts came from: memory, disk, or computing."""
    if not totals.prompt_tokens:
        return []
    live, restored = totals.cached_live_tokens, totals.cached_restored_tokens
    origins = f"{live:,} found in memory, {restored:,} restored from disk"
    return [f"  prompts {many(totals.prompt_tokens, 'token')}: {origins}"]


def _kv_link(link: "KvLinkStatus") -> list[str]:
    """The daemon's side of the cache: what it restored, sends, and compared again."""
    state = _word(link, "state")
    if link.HasField("problem"):
        return [f"  cache   {state}: {link.problem.message}", f"          {link.problem.hint}"]
    if state == "disabled":
        return [f"  cache   {state}"]
    waiting = f"{size(link.queue_bytes)} waiting to be sent"
    lines = [f"  cache   {state}: {many(link.restores, 'restore')} from disk, {waiting}"]
    lost = link.dropped_records + link.refused_records
    if lost:
        lines.append(f"          {many(lost, 'record')} not stored: queue full or refused")
    if link.canaries:
        lines.append(
            f"          {many(link.canaries, 'restore')} computed again, "
            f"{link.canary_failures:,} of them wrong"
        )
    return lines


def _request(one: "RequestStatus") -> list[str]:
    prompt = f"{one.prefilled_tokens:,} of {many(one.prompt_tokens, 'prompt token')}"
    generated = f"{one.generated_tokens:,} of {one.max_tokens:,} generated"
    return [
        f"  request {one.request_id} of {one.client.name or 'unknown'}",
        f"          {_word(one, 'phase')}, {prompt}, {generated}, {_duration(one.age_s)} old",
    ]


def _word(message: Any, field: str) -> str:
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    return enum_word(enum, getattr(message, field))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def _size(count_bytes: int) -> str:
    size, unit = float(count_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
