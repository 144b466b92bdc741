"""What a request means depends on the model that is loaded."""

import pytest
from ds4.v1 import types_pb2 as pb
from ds4_daemon import standin
from ds4_daemon.rpc.request import Requests
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.text.chat import APRIL, JULY, Ladder
from ds4_daemon.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("ladder", "utmost"),
    [(APRIL, "Reasoning Effort: Absolute maximum"), (JULY, "Beyond maximum")],
)
def test_the_effort_is_worded_for_the_release(ladder: Ladder, utmost: str) -> None:
    """Both releases know low and max, and mean other prompts by max."""
    tokenizer = Tokenizer.load(standin.TOKENIZER)
    requests = Requests(tokenizer, tokenizer.vocab_size, 4096, Sampling(), ladder)

    def prompt(effort: pb.ReasoningEffort.ValueType) -> str:
        message = pb.Message(role=pb.ROLE_USER, content="Hello")
        return requests.render(pb.Conversation(messages=[message], reasoning_effort=effort)).text

    low, most = prompt(pb.REASONING_EFFORT_LOW), prompt(pb.REASONING_EFFORT_MAX)
    assert utmost in most
    assert "aximum" not in low
    assert most.endswith(low.removeprefix(tokenizer.specials[tokenizer.bos_id]))
