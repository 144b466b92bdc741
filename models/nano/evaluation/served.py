"""Time to first token and tokens a second, as a client of a real daemon over its socket sees them.

Starts ds4-daemon with the model in a folder of its own, without the cache service, and asks it.
Times are the client's; the median of several.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from ds4_client import Client, Delta, Ids

_DAEMON = Path(sys.executable).parent / "ds4-daemon"
_ANSWER_TOKENS = 64
_START_S = 120
_SILENT = "ds4-daemon does not serve; start it by hand to see why"


def measure(
    model: Path, prompts: dict[str, list[int]], runs: int
) -> dict[str, dict[str, float]]:  # fmt: skip
    """By the prompt's name: its tokens, `first_token_s`, and `tokens_a_second` after it; and
    "start": seconds from the start of the daemon until it serves."""
    out: dict[str, dict[str, float]] = {}
    # Short, because a socket's path has room for about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as home:
        begin_s = time.perf_counter()
        command = [str(_DAEMON), "--model", str(model)]
        environment = os.environ | {"DS4_HOME": home}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as daemon:
            try:
                with Client(home) as client:
                    if not client.wait(_START_S):
                        raise ChildProcessError(_SILENT)
                    out["start"] = {"seconds": time.perf_counter() - begin_s}
                    for name, ids in prompts.items():
                        times = [_once(client, ids) for _ in range(runs)]
                        out[name] = {
                            "prompt_tokens": len(ids),
                            "runs": runs,
                            "first_token_s": median(first for first, _ in times),
                            "tokens_a_second": median(speed for _, speed in times),
                        }
            finally:
                daemon.terminate()
    return out


def _once(client: Client, ids: list[int]) -> tuple[float, float]:
    """Seconds to the first token, and tokens a second from there on."""
    begin_s = time.perf_counter()
    first_s, first_tokens, tokens = 0.0, 0, 0
    options = client.generate(
        Ids(ids), max_tokens=_ANSWER_TOKENS, temperature=0, ignore_eos=True, bypass_cache=True
    )
    with options as stream:
        for event in stream:
            if isinstance(event, Delta) and event.token_ids:
                tokens += len(event.token_ids)
                if not first_tokens:
                    first_s, first_tokens = time.perf_counter(), tokens
    if tokens == first_tokens:
        raise ChildProcessError(f"the daemon gave {tokens} tokens at once, which makes no speed")
    return first_s - begin_s, (tokens - first_tokens) / (time.perf_counter() - first_s)
