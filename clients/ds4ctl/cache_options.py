"""The options and inputs of `ds4ctl cache`: keys, sizes, spans of time, and what is selected."""

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ds4ctl.options import home

if TYPE_CHECKING:
    from ds4_client.kvcache import KvCacheClient

_F = TypeVar("_F", bound=Callable[..., Any])

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


class _Amount(click.ParamType[float]):
    """A number with one of some units behind it."""

    def __init__(self, name: str, pattern: str, units: dict[str, int], example: str) -> None:
        self.name = name
        self._pattern, self._units, self._example = re.compile(pattern), units, example

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        match = self._pattern.fullmatch(str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no {self.name}; write one such as {self._example}", param, ctx)
        return float(match[1]) * self._units[match[2]]


SIZE = _Amount("size", r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", _UNITS, "20GB")
SPAN = _Amount("time", r"(\d+(?:\.\d+)?)\s*([smhdw])", _SPANS, "12h or 7d")


def open_cache() -> "KvCacheClient":
    """A client of the KV cache of the home that was asked for."""
    from ds4_client.kvcache import KvCacheClient

    return KvCacheClient(home())


def hexadecimal(_context: click.Context, parameter: click.Parameter, value: str) -> bytes:
    """The bytes that an even number of hexadecimal digits stand for."""
    try:
        return bytes.fromhex(value)
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r} is no even number of hexadecimal digits", param=parameter
        ) from error


_SELECTION = (
    click.option(
        "--fingerprint",
        default="",
        callback=hexadecimal,
        metavar="HEX",
        help="Of the model whose fingerprint begins so.",
    ),
    click.option("--salt", metavar="SALT", help="Of this salt; '' is the common one."),
    click.option(
        "--key",
        default="",
        callback=hexadecimal,
        metavar="HEX",
        help="Of the block whose key begins so, and all below it.",
    ),
    click.option("--older", type=SPAN, metavar="TIME", help="Not used for TIME, such as 7d."),
)


def selection_options(command: _F) -> _F:
    """Options that select blocks; the command gets `chosen`, a Selection of the contract."""

    @functools.wraps(command)
    def selecting(
        fingerprint: bytes, salt: str | None, key: bytes, older: float | None, **more: Any
    ) -> Any:
        from ds4.v1.kvstore_pb2 import Selection

        chosen = Selection(fingerprint=fingerprint, salt=salt, key=key, idle_s=older or 0)
        return command(chosen=chosen, **more)

    for option in reversed(_SELECTION):
        selecting = option(selecting)
    return selecting  # type: ignore[return-value]  # what click decorates keeps no signature
