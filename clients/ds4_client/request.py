"""From keyword arguments to a GenerateRequest: sampling, limits, identity. Used by both clients."""

import math
import os
import uuid
from collections.abc import Sequence
from typing import Literal, TypedDict

from ds4.v1 import inference_pb2, types_pb2

from ds4_client.errors import InvalidRequestError
from ds4_client.prompt import Prompt, to_prompt
from ds4_client.rejoin import PATIENCE_S

# A request that is too late is ended by the daemon, which still tells its usage; the call's own
# deadline comes this much later, for a daemon that no longer answers.
DEADLINE_GRACE_S = 2.0


class Options(TypedDict, total=False):
    """How to generate. What is absent or None takes the daemon's default."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    max_tokens: int | None
    stop: str | Sequence[str] | None
    logprobs: bool
    top_logprobs: int
    ignore_eos: bool
    priority: Literal["interactive", "normal", "background"]
    timeout_s: float | None  # give up this long after the request arrived
    request_id: str  # for `cancel`, `attach` and a retry; chosen when absent
    detach: bool  # go on when the connection is lost, also through a restart of the daemon
    patience_s: float  # with `detach`: how long a lost connection is looked for
    session: str  # extend and keep the session of this name
    salt: str  # share cached prefixes within this salt only
    bypass_cache: bool
    no_save: bool


def who(client_name: str) -> types_pb2.ClientInfo:
    """This program, as the daemon is told."""
    return types_pb2.ClientInfo(name=client_name, instance=str(os.getpid()))


def to_request(client_name: str, prompt: Prompt, options: Options) -> inference_pb2.GenerateRequest:
    """The request, with an id of its own so that it can be named before the daemon has answered."""
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:  # a misspelt limit would be no limit
        raise InvalidRequestError(
            "UNKNOWN_OPTION",
            f"there is no option {', '.join(sorted(unknown))}",
            f"options are {', '.join(sorted(Options.__annotations__))}",
        )
    stop = options.get("stop") or ()
    timeout_s = options.get("timeout_s")
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise InvalidRequestError("BAD_TIMEOUT", f"a timeout of {timeout_s} s cannot be kept")
    priority = f"PRIORITY_{options.get('priority', 'normal').upper()}"
    try:
        return inference_pb2.GenerateRequest(
            request_id=options.get("request_id") or uuid.uuid4().hex,
            client=who(client_name),
            prompt=to_prompt(prompt),
            sampling=types_pb2.Sampling(
                temperature=options.get("temperature"),
                top_p=options.get("top_p"),
                top_k=options.get("top_k"),
                min_p=options.get("min_p"),
                seed=options.get("seed"),
                max_tokens=options.get("max_tokens"),
                stop=[stop] if isinstance(stop, str) else stop,
                logprobs=options.get("logprobs", False),
                top_logprobs=options.get("top_logprobs", 0),
                ignore_eos=options.get("ignore_eos", False),
            ),
            priority=types_pb2.Priority.Value(priority),
            deadline_ms=math.ceil((timeout_s or 0) * 1000),
            detach=options.get("detach", False),
            session=options.get("session", ""),
            cache=inference_pb2.CachePolicy(
                salt=options.get("salt", ""),
                bypass=options.get("bypass_cache", False),
                no_save=options.get("no_save", False),
            ),
        )
    except (ValueError, TypeError) as error:
        # protobuf's own words: a number out of its field's range, text that is no UTF-8.
        raise InvalidRequestError(
            "BAD_VALUE", f"a value of the request cannot be sent: {error}"
        ) from error


def patience_s(options: Options) -> float | None:
    """How long a lost call is looked for; None: not at all, as the request ends with its call."""
    return options.get("patience_s", PATIENCE_S) if options.get("detach") else None


def call_timeout_s(request: inference_pb2.GenerateRequest) -> float | None:
    """How long the call may take at most."""
    return request.deadline_ms / 1000 + DEADLINE_GRACE_S if request.deadline_ms else None
