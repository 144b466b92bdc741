"""The settings of ds4-kvcache: names, ranges and defaults; docs/settings.md lists them.

What depends on the disk (`budget_bytes`, `free_floor_bytes`) is worked out by `cache` when it is
not set. Read once by `main`.
"""

from pathlib import Path
from typing import ClassVar, Literal

from ds4_runtime.settings import Bytes, ProcessSettings, Source
from pydantic import Field

# More than any disk has, and LMDB's map of a quarter more still fits 47 bits of addresses.
_MOST_BYTES = 64_000_000_000_000
_MOST_TOKENS = 8_000_000  # of one lookup


class Settings(ProcessSettings):
    """All that can be set."""

    source: ClassVar[Source] = Source(
        "ds4-kvcache",
        "DS4_KVCACHE_",
        "kvcache.toml",
        "Keeps what ds4-daemon computed for prompts on disk, for it to be used again.",
    )

    folder: Path | None = Field(
        None, description="where to store; none: cache/kv.noindex of the home"
    )
    # Below some megabytes a single batch is most of the budget.
    budget_bytes: Bytes | None = Field(
        None,
        ge=16_000_000,
        le=_MOST_BYTES,
        description="most bytes on disk, such as 20GB; none: half of what is free, up to 64 GB",
    )
    free_floor_bytes: Bytes | None = Field(
        None,
        ge=0,
        le=_MOST_BYTES,
        description="bytes the disk must keep free; none: a tenth of it, up to 20 GB",
    )
    # What prefill without a pause would write in a day on the fastest machine known; a drive of
    # 600 TB endurance takes it for 16 years.
    daily_write_budget_bytes: Bytes = Field(
        100_000_000_000,
        ge=0,
        le=_MOST_BYTES,
        description="bytes that may be written a day; 0: no limit",
    )
    # A prompt of 512 tokens is computed in one or two seconds.
    min_tokens: int = Field(512, ge=128, le=_MOST_TOKENS, description="fewest tokens worth storing")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is logged"
    )
    log_file: Path | None = Field(None, description="where to log; none: standard error")
