"""Either process is killed at any moment: what is answered is right, and so is what comes after."""

from ds4_daemon import standin

from bench.kv_kills import PROMPTS, WRONG, run

ROUNDS = 6


def test_killed_at_any_moment_nothing_wrong_is_answered(models: standin.StandIn) -> None:
    """SIGKILL of the service or the daemon while four clients ask, from a seed."""
    counts = run(models.gguf, ROUNDS, seed=11)
    assert {key: counts[key] for key in WRONG} == dict.fromkeys(WRONG, 0)
    assert counts["rounds"] == ROUNDS
    assert counts["kills_of_service"] and counts["kills_of_daemon"]
    # After each kill all are answered; some of these from what was stored before.
    assert counts["answers"] >= ROUNDS * len(PROMPTS)
    assert counts["hits_after_kill_of_service"] and counts["hits_after_kill_of_daemon"]
    assert counts["records_read"]
