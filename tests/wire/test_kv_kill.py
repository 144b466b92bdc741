"""Either process is killed at any moment: what is answered is right, and so is what comes after."""

import concurrent.futures
import random
import time
from pathlib import Path

import grpc
from ds4_daemon import standin

from tests.wire.conftest import Daemon
from tests.wire.kv_service import Service
from tests.wire.test_kv_restore import DAEMON, SERVICE, generate, prompt

ROUNDS = 6
PROMPTS = [prompt(100 + i, 300 + 150 * i) for i in range(4)]


def test_killed_at_any_moment_nothing_wrong_is_answered(
    home: Path, models: standin.StandIn
) -> None:
    """SIGKILL of the service or the daemon while four clients ask, from a seed."""
    dice = random.Random(11)
    service, daemon = Service(home, *SERVICE), Daemon(home, models.gguf, *DAEMON)
    try:
        service.start()
        daemon.start()
        expected = [generate(daemon, ids, bypass=True, no_save=True)[0] for ids in PROMPTS]
        answers = restored = 0
        for _ in range(ROUNDS):
            victim: Service | Daemon = service if dice.random() < 0.7 else daemon
            delay_s = dice.uniform(0.0, 1.5)
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                jobs = [pool.submit(generate, daemon, ids) for ids in PROMPTS]
                time.sleep(delay_s)
                victim.kill()
                for job, wanted in zip(jobs, expected, strict=True):
                    try:
                        tokens, usage = job.result()
                    except (grpc.RpcError, IndexError):
                        if victim is service:
                            raise
                        continue  # a client of a killed daemon has no answer
                    assert tokens == wanted
                    answers += 1
                    restored += usage.cached_restored_tokens > 0
            victim.start()
        assert [generate(daemon, ids)[0] for ids in PROMPTS] == expected
        assert answers >= ROUNDS
        assert restored
    finally:
        daemon.kill()
        service.kill()
