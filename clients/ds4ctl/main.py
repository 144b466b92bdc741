"""ds4ctl: the daemon at the command line. One `cmd_*` file a command; here they meet their errors.

Nothing but click is imported before a command runs, so that help is there at once.
"""

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from ds4ctl.cmd_attach import attach
from ds4ctl.cmd_cache import cache
from ds4ctl.cmd_cache_change import COMMANDS as CACHE_CHANGES
from ds4ctl.cmd_cancel import cancel
from ds4ctl.cmd_chat import chat
from ds4ctl.cmd_estimate import estimate
from ds4ctl.cmd_ps import ps
from ds4ctl.cmd_run import run
from ds4ctl.cmd_sessions import sessions
from ds4ctl.cmd_status import status
from ds4ctl.cmd_tokenize import tokenize
from ds4ctl.explain import ExitCode, explain, report
from ds4ctl.options import home_option

EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 daemon not running, 4 timed out, "
    "78 bad configuration, 130 interrupted."
)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ds4")
@home_option
def ds4ctl() -> None:
    """Talk to the model that ds4-daemon has loaded on this machine."""


for _command in (run, chat, status, ps, attach, cancel, estimate, tokenize, sessions, cache):
    ds4ctl.add_command(_command)
for _command in CACHE_CHANGES:
    cache.add_command(_command)


def main() -> None:
    """The entry point of the command `ds4ctl`."""
    # gRPC's own log lines say nothing that the errors here do not say better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character shows another; it does not end the answer.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        # What a shell passes is bytes; whatever the locale says, here they are UTF-8.
        arguments = [os.fsencode(argument).decode() for argument in sys.argv[1:]]
    except UnicodeDecodeError:
        message, hint = "an argument is not UTF-8", "pass such text on standard input"
        explain("USAGE", message, hint, as_json="--json" in sys.argv)
        sys.exit(ExitCode.USAGE)
    sys.exit(execute(arguments))


def _open_missing_streams() -> None:
    """A stream that was closed before we started reads as empty and swallows what is written."""
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 (for the whole run)
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (likewise)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (likewise)


def execute(arguments: Sequence[str]) -> int:
    """Run one command line. Returns the exit code; every failure that has a reason is told."""
    as_json = "--json" in arguments
    try:
        code = ds4ctl.main(list(arguments), prog_name="ds4ctl", standalone_mode=False)
        return code if isinstance(code, int) else ExitCode.OK
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "ds4ctl"
        explain("USAGE", error.format_message(), f"see `{path} --help`", as_json=as_json)
        return ExitCode.USAGE
    except click.Abort:  # click's word for Ctrl-C
        return ExitCode.INTERRUPTED
    except OSError as error:  # a broken pipe never comes here: click ends it quietly
        message = f"input or output failed: {error.strerror or error}"
        explain("IO_FAILED", message, "", as_json=as_json)
        return ExitCode.FAILED
    except Exception as error:
        known = report(error, as_json=as_json)
        if known is None:
            raise
        return known


if __name__ == "__main__":
    main()
