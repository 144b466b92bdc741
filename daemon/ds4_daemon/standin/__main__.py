"""`python -m ds4_daemon.standin OUT_DIR [--seed N]`: write the stand-in model, print its paths."""

import argparse
import sys
from pathlib import Path

from ds4_daemon.errors import DaemonError
from ds4_daemon.standin import make


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ds4_daemon.standin",
        description="Write the stand-in model: random weights, its text is noise.",
    )
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        made = make(arguments.folder, arguments.seed)
    except DaemonError as error:
        print(error, file=sys.stderr)
        return 78
    print(made.release, made.gguf, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
