"""What a client may not ask: each is refused with its reason and a hint, and nothing breaks."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from ds4.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    kvcache_pb2,
    kvcache_pb2_grpc,
    kvstore_pb2,
    types_pb2,
)
from ds4.v1 import inference_pb2 as pb

from tests.wire.conftest import Daemon, refusal

IDS = pb.Prompt(token_ids=types_pb2.TokenIds(ids=[5, 6, 7]))


@pytest.fixture(autouse=True)
def still_serving(daemon: Daemon) -> Iterator[None]:
    """After each refusal the daemon answers the next request, and nothing is left behind."""
    yield
    with daemon.client() as client:
        assert client.run("hello", temperature=0, max_tokens=2).usage.completion_tokens == 2
    assert not daemon.status().engine.requests


def refused(call: Callable[[], Any], code: grpc.StatusCode, reason: str) -> None:
    def whole() -> None:
        answer = call()
        if hasattr(answer, "__next__"):
            list(answer)

    with pytest.raises(grpc.RpcError) as caught:
        whole()
    assert caught.value.code() is code, caught.value
    told, hint = refusal(caught.value)
    assert told == reason
    assert hint
    assert caught.value.details()


def sampling(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt=IDS, sampling=types_pb2.Sampling(**fields))


def chat(*messages: types_pb2.Message, **fields: Any) -> pb.GenerateRequest:
    conversation = types_pb2.Conversation(messages=messages, **fields)
    return pb.GenerateRequest(prompt=pb.Prompt(conversation=conversation))


USER = types_pb2.Message(role=types_pb2.ROLE_USER, content="Hi")

BAD = {
    "no prompt": (pb.GenerateRequest(), "NO_PROMPT"),
    "no ids": (
        pb.GenerateRequest(prompt=pb.Prompt(token_ids=types_pb2.TokenIds())),
        "EMPTY_PROMPT",
    ),
    "foreign id": (
        pb.GenerateRequest(prompt=pb.Prompt(token_ids=types_pb2.TokenIds(ids=[1, 8_192]))),
        "TOKEN_OUT_OF_RANGE",
    ),
    "huge id": (
        pb.GenerateRequest(prompt=pb.Prompt(token_ids=types_pb2.TokenIds(ids=[2**32 - 1]))),
        "TOKEN_OUT_OF_RANGE",
    ),
    "past the context": (
        pb.GenerateRequest(prompt=pb.Prompt(token_ids=types_pb2.TokenIds(ids=[5] * 65_536))),
        "PROMPT_TOO_LONG",
    ),
    "temperature": (sampling(temperature=-1), "TEMPERATURE_OUT_OF_RANGE"),
    "temperature NaN": (sampling(temperature=float("nan")), "TEMPERATURE_OUT_OF_RANGE"),
    "temperature hot": (sampling(temperature=2.5), "TEMPERATURE_OUT_OF_RANGE"),
    "top_p": (sampling(top_p=0), "TOP_P_OUT_OF_RANGE"),
    "top_p above": (sampling(top_p=1.5), "TOP_P_OUT_OF_RANGE"),
    "min_p": (sampling(min_p=2), "MIN_P_OUT_OF_RANGE"),
    "max_tokens": (sampling(max_tokens=0), "MAX_TOKENS_OUT_OF_RANGE"),
    "top_logprobs": (sampling(logprobs=True, top_logprobs=21), "TOP_LOGPROBS_OUT_OF_RANGE"),
    "top_logprobs alone": (sampling(top_logprobs=2), "TOP_LOGPROBS_WITHOUT_LOGPROBS"),
    "empty stop": (sampling(stop=[""]), "BAD_STOP_STRING"),
    "many stops": (sampling(stop=["x"] * 99), "BAD_STOP_STRING"),
    "request id": (pb.GenerateRequest(request_id="a b", prompt=IDS), "BAD_REQUEST_ID"),
    "long request id": (pb.GenerateRequest(request_id="a" * 129, prompt=IDS), "BAD_REQUEST_ID"),
    "client": (
        pb.GenerateRequest(client=types_pb2.ClientInfo(name="n" * 256), prompt=IDS),
        "CLIENT_NAME_TOO_LONG",
    ),
    "salt": (
        pb.GenerateRequest(prompt=IDS, cache=pb.CachePolicy(salt="é" * 128)),
        "SALT_TOO_LONG",
    ),
    "priority": (pb.GenerateRequest(priority=77, prompt=IDS), "UNKNOWN_PRIORITY"),  # type: ignore[arg-type]
    "role": (chat(types_pb2.Message(role=99, content="x")), "UNKNOWN_ROLE"),  # type: ignore[arg-type]
    "no role": (chat(types_pb2.Message(content="x")), "UNKNOWN_ROLE"),
    "tool_choice": (chat(USER, tool_choice=9), "UNKNOWN_TOOL_CHOICE"),
    "thinking_mode": (chat(USER, thinking_mode=9), "UNKNOWN_THINKING_MODE"),
    "effort": (chat(USER, reasoning_effort=9), "UNKNOWN_REASONING_EFFORT"),
    "form": (
        chat(USER, response_format=types_pb2.ResponseFormat(kind=9)),  # type: ignore[arg-type]
        "UNKNOWN_RESPONSE_FORMAT",
    ),
    "empty chat": (chat(), "EMPTY_CONVERSATION"),
    "tool schema": (
        chat(USER, tools=[types_pb2.Tool(name="f", parameters_json="{")]),
        "BAD_TOOL_SCHEMA",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_named(daemon: Daemon, case: str) -> None:
    """Each impossible value is INVALID_ARGUMENT with the reason that belongs to it."""
    request, reason = BAD[case]
    with daemon.inference() as stub:
        refused(
            lambda: stub.Generate(request, timeout=30), grpc.StatusCode.INVALID_ARGUMENT, reason
        )


def test_ids_that_are_none_are_refused_everywhere(daemon: Daemon) -> None:
    """Tokenize and Detokenize name unknown ids as Generate does."""
    bad = types_pb2.TokenIds(ids=[9_999])
    with daemon.inference() as stub:
        refused(
            lambda: stub.Detokenize(pb.DetokenizeRequest(tokens=bad)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "UNKNOWN_TOKEN_ID",
        )
        refused(
            lambda: stub.Tokenize(pb.TokenizeRequest(prompt=pb.Prompt(token_ids=bad))),
            grpc.StatusCode.INVALID_ARGUMENT,
            "TOKEN_OUT_OF_RANGE",
        )


def test_what_is_not_built_says_so(daemon: Daemon) -> None:
    """Parts of the contract that come later are UNIMPLEMENTED with a reason and a hint."""
    with daemon.channel() as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        cache = kvcache_pb2_grpc.KvCacheStub(channel)
        calls: list[tuple[str, Callable[[], Any]]] = [
            ("LOAD_NOT_BUILT", lambda: admin.Load(admin_pb2.LoadRequest())),
            ("UNLOAD_NOT_BUILT", lambda: admin.Unload(admin_pb2.UnloadRequest())),
            ("METRICS_NOT_BUILT", lambda: admin.Metrics(admin_pb2.MetricsRequest())),
            ("KV_CACHE_NOT_BUILT", lambda: cache.Stat(kvstore_pb2.StatRequest())),
            ("KV_CACHE_NOT_BUILT", lambda: cache.Put(iter([kvcache_pb2.PutRequest()]))),
            ("KV_CACHE_NOT_BUILT", lambda: cache.Fetch(kvcache_pb2.FetchRequest())),
        ]
        for reason, call in calls:
            refused(call, grpc.StatusCode.UNIMPLEMENTED, reason)


def test_a_request_of_62_mb_is_read_and_judged(daemon: Daemon) -> None:
    """31 million ids arrive whole and are refused for their length, not for their bytes."""
    request = pb.GenerateRequest(prompt=IDS)
    request.prompt.token_ids.ids.extend([300] * 31_000_000)
    assert request.ByteSize() > 62_000_000
    with daemon.inference() as stub:
        refused(
            lambda: stub.Generate(request, timeout=60),
            grpc.StatusCode.INVALID_ARGUMENT,
            "PROMPT_TOO_LONG",
        )


def test_garbage_on_the_wire_is_survived(daemon: Daemon) -> None:
    """Bytes that are no message, and an unknown method, end their call only."""
    with daemon.channel() as channel:
        for method, payload in (("Generate", b"\xff" * 64), ("Nothing", b"")):
            call: Any = channel.unary_stream(f"/ds4.v1.Inference/{method}")
            with pytest.raises(grpc.RpcError):
                list(call(payload, timeout=10))
