"""The waiting room, the cuts of prompts, and what is learned of speeds."""

from array import array

import pytest
from ds4_daemon.errors import OverloadedError
from ds4_daemon.sched.policy import chunk_length
from ds4_daemon.sched.queue import WaitingRoom
from ds4_daemon.sched.rates import Rates
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.sched.sequence import Client, Finish, Sequence


def sequence(name: str, prompt: int, client: str = "") -> Sequence:
    return Sequence(name, array("i", range(prompt)), Sampling(), 4, client=Client(client))


def test_chunks_end_at_absolute_multiples() -> None:
    """Cuts are positions divisible by the chunk size, wherever the computing starts."""
    assert chunk_length(0, 100, 32) == 32
    assert chunk_length(5, 100, 32) == 27
    assert chunk_length(96, 100, 32) == 4
    assert chunk_length(32, 64, 32) == 32


def test_room_keeps_the_order_it_is_told() -> None:
    """Places follow the policy's order; who came meanwhile stays at the end."""
    room = WaitingRoom(4)
    a, b, c, d = (sequence(name, 1) for name in "abcd")
    for s in (a, b, c):
        room.put(s)
    room.arrange([c, a, b])
    room.put(d)
    assert [room.position(s) for s in (c, a, b, d)] == [0, 1, 2, 3]
    assert room.before(b) == [c, a]
    room.arrange([b, c, a])
    assert room.waiting == [b, c, a, d]
    assert room.take([a, d]) == [a, d]


def test_a_client_has_its_part_of_the_room() -> None:
    """One that may have two waiting is refused the third with a reason; others are not."""
    room = WaitingRoom(8)
    for name in "ab":
        room.put(sequence(name, 1, client="x"), 2)
    with pytest.raises(OverloadedError) as caught:
        room.put(sequence("c", 1, client="x"), 2)
    assert caught.value.reason == "CLIENT_QUEUE_FULL"
    room.put(sequence("d", 1, client="y"), 2)


def test_room_is_first_come_first_served_and_bounded() -> None:
    """The waiting room keeps order, tells places, and refuses the one too many with a reason."""
    room = WaitingRoom(3)
    a, b, c, d = (sequence(name, 1) for name in "abcd")
    for s in (a, b, c):
        room.put(s)
    with pytest.raises(OverloadedError) as caught:
        room.put(d)
    assert caught.value.reason == "QUEUE_FULL"
    assert [room.position(s) for s in (a, b, c)] == [0, 1, 2]
    assert room.remove_if(lambda s: s is b) == [b]
    assert room.take([c, a, d]) == [a, c]
    assert len(room) == 0


def test_a_verdict_that_changes_loses_nobody() -> None:
    """A sequence that is told to stop while the room is searched leaves it once or stays."""
    room = WaitingRoom(8)
    waiting = [sequence(name, 1) for name in "abc"]
    for s in waiting:
        room.put(s)
    looks: list[str] = []

    def unwanted(s: Sequence) -> bool:
        looks.append(s.request_id)
        return s is waiting[0] or looks.count(s.request_id) > 1  # b is told after its first look

    removed = room.remove_if(unwanted)
    assert [*removed, *room.take(waiting)] == waiting


def test_the_first_reason_to_stop_counts() -> None:
    """A deadline that was passed is not called a cancel because the client left afterwards."""
    one = sequence("a", 1)
    one.stop(Finish.DEADLINE)
    one.stop(Finish.CANCELLED)
    assert one.stop_requested is Finish.DEADLINE


def test_rates_read_no_growth_from_a_few_lines() -> None:
    """Tiny prompts whose tokens took unlike times foretell no slope for one of 10,000 tokens."""
    rates = Rates()
    for tokens, token_s in ((4, 1.6e-3), (9, 1.5e-3), (40, 1.9e-3)):
        rates.prefilled(0, tokens, tokens * token_s)
    foretold_s = rates.prefill_s(0, 10_000)
    assert foretold_s == pytest.approx(18, rel=0.1)


def test_rates_learn_the_growth_with_position_and_batch() -> None:
    """Later chunks and larger batches are foretold from earlier ones; nothing is known at first."""
    rates = Rates()
    assert rates.prefill_s(0, 512) is None
    assert rates.decode_s(3) is None
    for at in range(0, 4096, 512):
        rates.prefilled(at, at + 512, 512 * (1e-3 + 1e-6 * (at + 256)))
    for batch in (1, 2, 4):
        rates.decoded(batch, 0.010 + 0.002 * batch)
    assert rates.prefill_s(8192, 8704) == pytest.approx(512 * (1e-3 + 1e-6 * 8448), rel=0.01)
    assert rates.prefill_s(0, 0) == 0
    assert rates.decode_s(8) == pytest.approx(0.026, rel=0.01)


def test_rates_of_noise_stay_above_nothing() -> None:
    """A line through falling points is flat: no position is foretold to take no time."""
    rates = Rates()
    for at, seconds in ((0, 1.0), (512, 0.5), (1024, 0.1)):
        rates.prefilled(at, at + 512, seconds)
    found = rates.prefill_s(100_000, 100_512)
    assert found is not None
    assert found > 0.1
