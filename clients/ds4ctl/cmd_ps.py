"""`ds4ctl ps`: every request that runs or waits, a line of at most 80 columns each.

Where there is more to say than a line can, `--json` says it.
"""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ds4ctl.cache_text import span
from ds4ctl.options import home_option, json_option, open_client
from ds4ctl.output import enum_word, plain, printable, say, tell, write_json
from ds4ctl.request_find import short_id

if TYPE_CHECKING:
    from ds4.v1.admin_pb2 import EngineStatus, RequestStatus

_WATCH_S = 1.0  # tokens come faster than an eye compares numbers
_COLUMNS = 80
# What all columns but the client take, beside an id of eight digits, and the least for a client.
_HEAD = "STATE          PROMPT      TOKENS   SPEED     AGE  CACHE"
_LEAST = 6
_CLEAR = "\x1b[H\x1b[J"


@click.command()
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@json_option
@home_option
def ps(watch: bool, as_json: bool) -> None:
    """List the requests that run or wait, oldest first.

    PROMPT is how much of the prompt is computed, TOKENS how many were generated of the most that
    will be, SPEED is tokens a second now, CACHE where a part of the prompt was found. A state with
    an asterisk: nobody is attached.
    """
    with open_client() as client:
        while True:
            engine = client.status().engine
            if as_json:
                write_json(_record(engine))
            else:
                lines = ps_lines(engine)
                if watch and sys.stdout.isatty():
                    sys.stdout.write(_CLEAR)
                tell(lines)
                if not lines:
                    say("no request runs or waits")
            if not watch:
                return
            time.sleep(_WATCH_S)


def _record(engine: "EngineStatus") -> dict[str, Any]:
    return {
        "running": engine.running,
        "waiting": engine.waiting,
        "requests": [plain(one) for one in engine.requests],
    }


def ps_lines(engine: "EngineStatus") -> list[str]:
    """The table; empty where there is nothing to show."""
    if not engine.requests:
        return []
    all_ids = [one.request_id for one in engine.requests]
    ids = [printable(short_id(one, all_ids)) for one in all_ids]
    # An id that a program chose may be long: then it is cut, and the client is not left out.
    most = _COLUMNS - len(_HEAD) - 4 - _LEAST
    width = min(max(map(len, [*ids, "ID"])), most)
    client = _COLUMNS - len(_HEAD) - 4 - width
    head = f"{'ID':{width}}  {'CLIENT':{client}}  {_HEAD}"
    return [head] + [
        f"{_fit(an_id, width)}  {_fit(printable(one.client.name), client)}  {_rest(one)}"
        for an_id, one in zip(ids, engine.requests, strict=True)
    ]


def _rest(one: "RequestStatus") -> str:
    phase = enum_word(one.DESCRIPTOR.fields_by_name["phase"].enum_type, one.phase)
    if phase == "queued":
        phase = f"queued {one.queue_position}"
    state = phase + ("*" if one.detached else "")
    prompt = f"{_short(one.prefilled_tokens)}/{_short(one.prompt_tokens)}"
    tokens = f"{_short(one.generated_tokens)}/{_short(one.max_tokens)}"
    speed = f"{_short(round(one.tokens_per_s))}/s" if one.tokens_per_s else "-"
    live, restored = one.cached_live_tokens, one.cached_restored_tokens
    cache = "both" if live and restored else "memory" if live else "disk" if restored else "-"
    return f"{state:9}  {prompt:>10}  {tokens:>10}  {speed:>6}  {span(one.age_s):>6}  {cache}"


def _short(count: int) -> str:
    """A count in four characters."""
    if count < 10_000:
        return str(count)
    return f"{count // 1000}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"


def _fit(text: str, width: int) -> str:
    return f"{text:{width}}" if len(text) <= width else f"{text[: width - 1]}…"
