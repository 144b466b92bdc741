"""From the start of ds4-daemon to the first token of a first request, over the real socket.

    python bench/startup.py [--runs 5] [--model PATH]

Without --model: the embedded one. The first run warms file caches; it is not counted.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from ds4_client import Client, Delta, Text

BIN = Path(sys.executable).parent


def once(home: str, model: list[str]) -> float:
    """Seconds from launch to the first token."""
    start_s = time.perf_counter()
    command = [str(BIN / "ds4-daemon"), *model]
    environment = os.environ | {"DS4_HOME": home}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as daemon:
        try:
            with Client(home) as client:
                if not client.wait(120):
                    raise SystemExit("the daemon does not serve; start it by hand to see why")
                with client.generate(Text("Once upon a time"), max_tokens=2) as events:
                    if not any(isinstance(event, Delta) for event in events):
                        raise SystemExit("no token came")
                    return time.perf_counter() - start_s
        finally:
            daemon.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", help="model folder or .gguf")
    args = parser.parse_args()
    model = ["--model", args.model] if args.model else []
    # Short, because a socket's path has room for about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as home:
        once(home, model)
        seconds = [once(home, model) for _ in range(args.runs)]
    print(f"median {median(seconds):.2f} s of {', '.join(f'{s:.2f}' for s in seconds)}")


if __name__ == "__main__":
    main()
