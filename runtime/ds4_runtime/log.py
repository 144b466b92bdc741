"""Logs of a process: constant past-tense phrases with fields, `request_id` bound once.

    log = structlog.get_logger()
    log.info("prefix restored", blocks=12, tokens=1536, ms=41)
    with bound(request_id="r7"):            # every line of this task until the block ends

Coloured lines for a person at a terminal, one JSON object a line for everything else. What
libraries log through `logging` (gRPC does) comes out in the same form. `main` calls `configure`
once, first.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import Processor

LEVELS = ("debug", "info", "warning", "error")


def configure(
    service: str, *, level: str = "info", file: Path | None = None, stream: TextIO | None = None
) -> None:
    """Send the logs of this process to `file` as JSON, else to `stream` (standard error).

    A stream that is a terminal gets lines for people. Every line carries `service`.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown log level {level!r}, one of {', '.join(LEVELS)} was expected")
    out = stream or sys.stderr
    handler: logging.Handler
    handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler(out)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor]
    if file is None and out.isatty():
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    else:
        last = [
            lambda _logger, _method, fields: {"service": service, **fields},
            # Without local variables: they hold what clients sent.
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    # They narrate (a line for each selector event, each file written); their warnings are wanted.
    for narrator in ("asyncio", "gguf"):
        logging.getLogger(narrator).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


@contextlib.contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Add `fields` to every line that the current task (or thread) logs inside the block."""
    with structlog.contextvars.bound_contextvars(**fields):
        yield
