"""Settings of a process: flags over variables over a TOML file in its home over defaults.

    class Settings(ProcessSettings):
        source = Source("ds4-kvcache", "DS4_KVCACHE_", "kvcache.toml")
        ...
    settings = load(Settings, arguments)

It knows no setting. A name that is unknown or a value that cannot be used is a SettingError which
says where it came from. Read once by `main`, before anything is opened.
"""

import argparse
import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

from pydantic import BeforeValidator, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from ds4_runtime.address import HOME_VARIABLE, Home
from ds4_runtime.errors import SettingError

_S = TypeVar("_S", bound="ProcessSettings")

_UNITS = {
    unit: base ** (1 + power)
    for base, end in ((1000, ""), (1024, "i"))
    for power, letter in enumerate("kmgt")
    for unit in (letter + end,)
} | {"": 1}


def parse_bytes(value: object) -> object:
    """A number of bytes from text such as 500MB, 20GB or 16GiB; what is no text as it is.

    Raises ValueError.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", value.strip().lower())
    if match is None:
        raise ValueError("is no size; write a number of bytes, or one such as 500MB, 20GB or 16GiB")
    amount = float(match[1]) if "." in match[1] else int(match[1])
    return int(amount * _UNITS[match[2]])


Bytes = Annotated[int, BeforeValidator(parse_bytes)]

# What pydantic finds, in words that fit behind a value. Others are said as pydantic says them.
_FINDINGS = {
    "bool_parsing": "is neither true nor false",
    "float_parsing": "is no number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "int_from_float": "is no whole number",
    "int_parsing": "is no whole number",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where the settings of one program come from."""

    program: str
    prefix: str  # of its variables
    file_name: str  # in the home
    description: str = ""
    others: tuple[str, ...] = ()  # prefixes of the variables of other programs

    @property
    def file(self) -> Path:
        """The configuration file; it need not exist."""
        return Home.find().path / self.file_name


class ProcessSettings(BaseSettings):
    """The base of a program's settings. Each field is a flag, a variable and a key of the file."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="forbid", frozen=True, protected_namespaces=()
    )
    source: ClassVar[Source]

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        if value == "":
            raise ValueError("is empty; leave it out for the default")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags and variables (given at init), then the file."""
        return init_settings, TomlConfigSettingsSource(settings_cls, cls.source.file)


def load(kind: type[_S], arguments: list[str] | None = None) -> _S:
    """Settings from the command line, the environment and the file. Raises SettingError.

    Leaves through SystemExit for --help, --version and flags that do not exist, as argparse does.
    """
    source = kind.source
    flags = vars(_parser(kind).parse_args(arguments))
    home = flags.pop("home", None)
    if home is not None:
        if not home:
            raise SettingError(
                "BAD_SETTING", "--home is empty", "name a directory, or leave it out"
            )
        os.environ[HOME_VARIABLE] = home  # for `Home.find`, here and wherever else it is asked
    variables = _variables(kind)
    help_hint = f"see `{source.program} --help`"
    try:
        if source.file.exists() and not source.file.is_file():
            raise SettingError(
                "CONFIG_UNREADABLE", f"{source.file} is not a file", "remove it, or make it one"
            )
        return kind(**(variables | flags))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise SettingError(
                "UNKNOWN_SETTING",
                f"{source.file} sets {key!r}, which is no setting",
                f"{help_hint} for what there is",
            ) from error
        origin = _origin(source, key, flags, variables)
        raise SettingError("BAD_SETTING", f"{origin}: {_finding(first)}", help_hint) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(
            "CONFIG_NOT_TOML", f"{source.file} is not TOML: {error}", "correct or remove the file"
        ) from error
    except OSError as error:
        raise SettingError(
            "CONFIG_UNREADABLE",
            f"{source.file} cannot be read: {error.strerror}",
            "correct its permissions or remove it",
        ) from error
    except SettingsError as error:
        raise SettingError("BAD_SETTING", str(error), help_hint) from error


def _variables(kind: type[ProcessSettings]) -> dict[str, str]:
    """The program's variables. A misspelt one is refused: it must not go unnoticed."""
    source = kind.source
    known = {source.prefix + name.upper(): name for name in kind.model_fields}
    found = {}
    for name, value in sorted(os.environ.items()):
        if name in known:
            if value:
                found[known[name]] = value
        elif (
            name.startswith(source.prefix)
            and name != HOME_VARIABLE
            and not name.startswith(source.others)
        ):
            near = difflib.get_close_matches(name, known, 1)
            raise SettingError(
                "UNKNOWN_SETTING",
                f"the variable {name} is no setting",
                f"did you mean {near[0]}?"
                if near
                else f"see `{source.program} --help` for what there is",
            )
    return found


def _finding(error: Mapping[str, Any]) -> str:
    """What is wrong with a value, as a sentence; of the details that pydantic gives."""
    words = _FINDINGS.get(error["type"])
    if words is None:
        return str(error["msg"])
    return f"{error['input']!r} {words.format(**error.get('ctx', {}))}"


def _origin(
    source: Source, key: str, flags: Mapping[str, Any], variables: Mapping[str, str]
) -> str:
    if key in flags:
        return _flag(key)
    return source.prefix + key.upper() if key in variables else f"{key!r} in {source.file}"


def _parser(kind: type[ProcessSettings]) -> argparse.ArgumentParser:
    from importlib.metadata import version

    source = kind.source
    parser = argparse.ArgumentParser(
        prog=source.program,
        description=source.description,
        epilog=f"Each flag is also a variable ({source.prefix}LOG_LEVEL) and a key of "
        f"{source.file_name} in the home.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{source.program} {version('ds4')}")
    parser.add_argument(
        "--home",
        metavar="DIR",
        help=f"sockets and files are in it; none: what {HOME_VARIABLE} says",
    )
    for name, field in kind.model_fields.items():
        default = "" if field.default is None else f" (default {field.default})"
        text = f"{field.description}{default}"
        if field.annotation is bool:
            parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, help=text)
        else:
            # No type here: text from any source is checked in one place, by the model.
            value = "SIZE" if name.endswith("_bytes") else _values(field.annotation)
            parser.add_argument(_flag(name), metavar=value, help=text)
    return parser


def _values(annotation: Any) -> str:
    return "|".join(get_args(annotation)) if get_origin(annotation) is Literal else "VALUE"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
