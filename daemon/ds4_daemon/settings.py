"""The settings of ds4-daemon: names, ranges and defaults; docs/settings.md lists them.

Flags over DS4_* variables over `<home>/config.toml` over defaults; `ds4_runtime.settings` reads
them. Read once by `main`, before anything is opened.
"""

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from ds4_runtime.settings import Bytes, ProcessSettings, Source
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class ClientSettings(BaseModel):
    """What one client may do, by its name: `[clients.NAME]` in config.toml."""

    model_config = ConfigDict(extra="forbid")

    weight: float = Field(1.0, gt=0, description="its share of the model against that of others")
    max_running: int | None = Field(None, ge=1, description="requests of it that run at once")
    max_waiting: int | None = Field(None, ge=0, description="requests of it that may wait")


def parse_table(value: object) -> object:
    """A table from the JSON text of a flag or a variable; what is no text as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(
            'is no JSON; write it as {"name": {"weight": 2}}, or use a table in config.toml'
        ) from error


class Settings(ProcessSettings):
    """All that can be set. Each field is a flag, a variable and a key of config.toml."""

    source: ClassVar[Source] = Source(
        "ds4-daemon",
        "DS4_",
        "config.toml",
        "Loads one model and shares it with every program of this user.",
        others=("DS4_KVCACHE_",),
    )

    model: Path | None = Field(
        None, description="a .gguf file or a folder of safetensors; none: the embedded model"
    )
    device: Literal["auto", "cpu", "gpu", "mlx-cpu"] = Field("auto", description="what computes")
    dtype: Literal["auto", "f32", "bf16"] = Field("auto", description="type of activations")
    rounding: bool = Field(
        True, description="round cached values to FP8 and FP4 as the official inference does"
    )
    dequantized_budget_bytes: Bytes = Field(
        1_000_000_000, ge=0, description="bytes of weights that a CPU may hold as float32"
    )
    context_tokens: int | None = Field(
        None, ge=2, description="most tokens of a prompt and its answer; none: what the model has"
    )
    # More would make each answer slower than most people read.
    max_running: int = Field(16, ge=1, description="requests that are decoded at once")
    max_waiting: int = Field(256, ge=1, description="requests that may wait for their turn")
    # As long as it takes to share the reading of weights, and no longer, for the layers of a chunk
    # are what others wait for: on a CPU 512 are no faster, a GPU unpacks experts for each chunk.
    chunk_tokens: int | None = Field(
        None, ge=1, description="prompt tokens computed together; none: 256 on a CPU, 512 on a GPU"
    )
    client_max_running: int | None = Field(
        None, ge=1, description="requests of one client that run at once; none: max_running"
    )
    client_max_waiting: int | None = Field(
        None, ge=0, description="requests of one client that may wait; none: max_waiting"
    )
    clients: Annotated[dict[str, ClientSettings], BeforeValidator(parse_table)] = Field(
        {}, description="weight and limits of single clients, by name"
    )
    sessions_bytes: Bytes | None = Field(
        None,
        ge=0,
        description="memory for all sessions; none: four fifths of what is left beside the weights",
    )
    # Longer than any step but one of a very long prompt on a slow machine, for which ten times
    # what is expected counts.
    watchdog_s: float = Field(
        30.0, gt=0, description="how long nothing may come of the engine before that is told"
    )
    kv_cache: bool = Field(
        True, description="restore and save prefixes through ds4-kvcache, while it runs"
    )
    # A session of 100k tokens of the full-size model takes 1.4 GB on a CPU.
    live_sessions_bytes: Bytes = Field(
        2_000_000_000, ge=0, description="memory for sessions kept after their requests"
    )
    # Less than a third of a second of computing nobody notices.
    kv_min_saving_s: float = Field(
        0.3, ge=0, description="restore only what takes longer than this to compute"
    )
    # With more than gRPC can count every call would be late at once.
    kv_deadline_s: float = Field(
        2.0,
        gt=0,
        le=3600,
        description="least time that a restore may take before the prompt is computed",
    )
    # A stretch of 4,096 tokens in a hundred restores: a percent of what they saved.
    kv_canary_every: int = Field(
        100, ge=0, description="compute one in so many restores again when idle; 0: none"
    )
    # Long enough for a program that was restarted to come back, or a person.
    keep_finished_s: float = Field(
        600.0, ge=0, description="how long the events of a request are kept after its end"
    )
    # Some hundred thousand tokens.
    keep_finished_bytes: Bytes = Field(
        64_000_000, ge=0, description="memory for them; the oldest go first"
    )
    # More than may run and wait ever sends, unless each prompt fills the context.
    journal_bytes: Bytes = Field(
        1_000_000_000, ge=0, description="most bytes on disk for requests that may be detached"
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
