"""The settings of ds4-daemon: flags over DS4_* variables over `<home>/config.toml` over defaults.

Owns names, ranges and defaults; a key that is unknown or a value that cannot be used is a
ConfigError which says where it came from. Read once by `main`, before anything is opened.
"""

import argparse
import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ds4_runtime.address import HOME_VARIABLE, Home
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from ds4_daemon.errors import ConfigError

_PREFIX = "DS4_"


class Settings(BaseSettings):
    """All that can be set. Each field is a flag, a variable and a key of config.toml."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
    )

    model: Path | None = Field(
        None, description="a .gguf file or a folder of safetensors; none: the stand-in model"
    )
    device: Literal["auto", "cpu", "gpu", "mlx-cpu"] = Field("auto", description="what computes")
    dtype: Literal["auto", "f32", "bf16"] = Field("auto", description="type of activations")
    rounding: bool = Field(
        True, description="round cached values to FP8 and FP4 as the official inference does"
    )
    dequantized_budget_bytes: int = Field(
        1_000_000_000, ge=0, description="bytes of weights that a CPU may hold as float32"
    )
    context_tokens: int | None = Field(
        None, ge=2, description="most tokens of a prompt and its answer; none: what the model has"
    )
    # Each running sequence holds a session; 16 small ones fit any machine that fits the weights.
    max_running: int = Field(16, ge=1, description="requests that run at once")
    max_waiting: int = Field(256, ge=1, description="requests that may wait for their turn")
    # Four blocks of 128: long enough to share the reading of weights, short enough that the others
    # get their next token within a second on a slow machine.
    chunk_tokens: int = Field(512, ge=1, description="prompt tokens computed in one step")
    kv_cache: bool = Field(
        True, description="restore and save prefixes through ds4-kvcache, while it runs"
    )
    # A session of 100k tokens of the full-size model takes 1.4 GB on a CPU.
    live_sessions_bytes: int = Field(
        2_000_000_000, ge=0, description="memory for sessions kept after their requests"
    )
    # Less than a third of a second of computing nobody notices.
    kv_min_saving_s: float = Field(
        0.3, ge=0, description="restore only what takes longer than this to compute"
    )
    kv_deadline_s: float = Field(
        2.0, gt=0, description="least time that a restore may take before the prompt is computed"
    )
    # The model's release recommends sampling from the unchanged distribution.
    temperature: float = Field(1.0, ge=0, le=2, description="when a request sets none")
    top_p: float = Field(1.0, gt=0, le=1, description="when a request sets none")
    top_k: int = Field(0, ge=0, description="when a request sets none; 0: all")
    min_p: float = Field(0.0, ge=0, le=1, description="when a request sets none")
    drain_limit_s: float = Field(
        30.0, ge=0, description="how long running requests may go on after SIGTERM"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is logged"
    )
    log_file: Path | None = Field(None, description="where to log; none: standard error")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags (given at init), then variables, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_file())


def config_file() -> Path:
    """The daemon's configuration file in its home; it need not exist."""
    return Home.find().path / "config.toml"


def load_settings(arguments: list[str] | None = None) -> Settings:
    """Settings from the command line, the environment and the file. Raises ConfigError.

    Leaves through SystemExit for --help, --version and flags that do not exist, as argparse does.
    """
    flags = vars(_parser().parse_args(arguments))
    _check_variables()
    if config_file().exists() and not config_file().is_file():
        raise ConfigError(
            "CONFIG_UNREADABLE", f"{config_file()} is not a file", "remove it, or make it one"
        )
    try:
        return Settings(**flags)
    except ValidationError as error:
        first = error.errors()[0]
        raise _explain(str(first["loc"][0]), first["type"], first["msg"], flags) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            "CONFIG_NOT_TOML", f"{config_file()} is not TOML: {error}", "correct or remove the file"
        ) from error
    except OSError as error:
        raise ConfigError(
            "CONFIG_UNREADABLE",
            f"{config_file()} cannot be read: {error.strerror}",
            "correct its permissions or remove it",
        ) from error
    except SettingsError as error:
        raise ConfigError("BAD_SETTING", str(error), "see `ds4-daemon --help`") from error


def _check_variables() -> None:
    """Refuse a DS4_* variable that is no setting: a misspelt DS4_MODEL must not go unnoticed."""
    known = {_PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and name not in known | {HOME_VARIABLE}:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                "UNKNOWN_SETTING",
                f"the variable {name} is no setting",
                f"did you mean {near[0]}?" if near else "see `ds4-daemon --help` for what there is",
            )


def _explain(key: str, kind: str, message: str, flags: Mapping[str, Any]) -> ConfigError:
    if kind == "extra_forbidden":
        return ConfigError(
            "UNKNOWN_SETTING",
            f"{config_file()} sets {key!r}, which is no setting",
            "see `ds4-daemon --help` for what there is",
        )
    if key in flags:
        origin = _flag(key)
    elif _PREFIX + key.upper() in os.environ:
        origin = _PREFIX + key.upper()
    else:
        origin = f"{key!r} in {config_file()}"
    return ConfigError("BAD_SETTING", f"{origin}: {message}", "see `ds4-daemon --help`")


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(
        prog="ds4-daemon",
        description="Loads one model and shares it with every program of this user.",
        epilog=f"Each flag is also a variable ({_PREFIX}MAX_RUNNING) and a key of config.toml in "
        "the home that DS4_HOME names.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ds4-daemon {version('ds4')}")
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f" (default {field.default})"
        if field.annotation is bool:
            parser.add_argument(
                _flag(name), action=argparse.BooleanOptionalAction, help=field.description
            )
        else:
            # No type here: text from any source is checked in one place, by the model.
            parser.add_argument(
                _flag(name), metavar=_values(field.annotation), help=f"{field.description}{default}"
            )
    return parser


def _values(annotation: Any) -> str:
    return "|".join(get_args(annotation)) if get_origin(annotation) is Literal else "VALUE"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
