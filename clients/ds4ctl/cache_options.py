"""The options and inputs of `ds4ctl cache`: keys, names, sizes, spans of time, conditions."""

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ds4ctl.cache_find import Choice
from ds4ctl.options import home

if TYPE_CHECKING:
    from ds4_client.kvcache import KvCacheClient

_F = TypeVar("_F", bound=Callable[..., Any])

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
# What the contract can carry, and no disk or person outlives.
_MOST_BYTES, _MOST_S = 2**62, 100 * 365 * 86_400
_KEY = re.compile("[0-9a-f]{1,64}")
_MOST_NAME_BYTES = 255  # of the service's store


class _Amount(click.ParamType[float]):
    """A number with one of some units behind it, from `least` to `most`."""

    def __init__(
        self,
        name: str,
        pattern: str,
        units: dict[str, int],
        example: str,
        least: float,
        most: float,
    ) -> None:
        self.name = name
        self._pattern, self._units, self._example = re.compile(pattern), units, example
        self._least, self._most = least, most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        match = self._pattern.fullmatch(str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no {self.name}; write one such as {self._example}", param, ctx)
        amount = float(match[1]) * self._units[match[2]]
        if amount < self._least:
            self.fail(f"{value!r} is too short; write one such as {self._example}", param, ctx)
        if amount > self._most:
            self.fail(f"{value!r} is too much; write one such as {self._example}", param, ctx)
        return amount


SIZE = _Amount(
    "size", r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", _UNITS, "500MB, 20GB or 16GiB", 0, _MOST_BYTES
)
# A time of nothing would mean the opposite to the contract: no end, or no condition.
SPAN = _Amount("time", r"(\d+(?:\.\d+)?)\s*([smhdw])", _SPANS, "90s, 12h or 7d", 1, _MOST_S)


def open_cache() -> "KvCacheClient":
    """A client of the KV cache of the home that was asked for."""
    from ds4_client.kvcache import KvCacheClient

    return KvCacheClient(home())


def key_digits(
    _context: click.Context, parameter: click.Parameter, value: str | None
) -> str | None:
    """The first digits of a key or a fingerprint, in lower case."""
    if value is None:
        return None
    if not value:  # as of a variable of the shell that is not set: never "all"
        place = "stat" if parameter.name == "fingerprint" else "ls"
        raise click.BadParameter(
            f"it is empty; `ds4ctl cache {place}` shows what there is", param=parameter
        )
    if not _KEY.fullmatch(value.lower()):
        raise click.BadParameter(f"{value!r} is not 1 to 64 hexadecimal digits", param=parameter)
    return value.lower()


def pin_name(_context: click.Context, parameter: click.Parameter, value: str) -> str:
    """A name that can be read and typed again."""
    if not 1 <= len(value.encode()) <= _MOST_NAME_BYTES or not value.isprintable():
        raise click.BadParameter(
            f"a name is 1 to {_MOST_NAME_BYTES} bytes of printable text", param=parameter
        )
    return value


def known_name(_context: click.Context, parameter: click.Parameter, value: str) -> str:
    """A name that some pin may have: other programs may have chosen what cannot be printed."""
    if not 1 <= len(value.encode()) <= _MOST_NAME_BYTES:
        raise click.BadParameter(
            f"a name is 1 to {_MOST_NAME_BYTES} bytes; `ds4ctl cache ls` shows them",
            param=parameter,
        )
    return value


_SELECTION = (
    click.option(
        "--fingerprint",
        callback=key_digits,
        metavar="HEX",
        help="Of the model whose fingerprint begins so.",
    ),
    click.option("--salt", metavar="SALT", help="Of this salt; '' is the common one."),
    click.option(
        "--key",
        callback=key_digits,
        metavar="HEX",
        help="Of the block whose key begins so, and all below it.",
    ),
    click.option("--older", type=SPAN, metavar="TIME", help="Not used for TIME, such as 7d."),
)


def selection_options(command: _F) -> _F:
    """Options that select blocks; the command gets them as `chosen`, a Choice."""

    @functools.wraps(command)
    def selecting(
        fingerprint: str | None, salt: str | None, key: str | None, older: float | None, **more: Any
    ) -> Any:
        return command(chosen=Choice(fingerprint, salt, key, older), **more)

    for option in reversed(_SELECTION):
        selecting = option(selecting)
    return selecting  # type: ignore[return-value]  # what click decorates keeps no signature
