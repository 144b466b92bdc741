"""From a request on the wire to a sequence for the engine, or to a RequestError that says why not.

Owns the meaning of every field of GenerateRequest: defaults, ranges, what is not built yet. Knows
no engine and no stream. Called by `inference`, off the event loop, for a prompt may be long.
"""

import re
import secrets
from array import array
from collections.abc import Sequence as Items
from dataclasses import dataclass

from ds4.v1 import inference_pb2, types_pb2
from ds4_runtime.kv_keys import SALT_MAX_BYTES

from ds4_daemon.engine.labels import check_name
from ds4_daemon.errors import ModelFileError, RequestError
from ds4_daemon.rpc.conversation import to_conversation
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.sched.sequence import CacheUse, Client, Sequence
from ds4_daemon.text.chat import Ladder, Opening, Rendered, complete, render
from ds4_daemon.text.parse import OutputParser
from ds4_daemon.text.tokenizer import Tokenizer

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MOST_NAME = 255  # of a client: the books, every kept request and each list of requests have it


@dataclass(frozen=True, slots=True)
class Prompt:
    """The ids of a prompt and what they leave for the model to write."""

    ids: Items[int]
    opening: Opening
    shared_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A request that can run: its sequence, and how to read what the engine makes of it."""

    sequence: Sequence
    parser: OutputParser


@dataclass(frozen=True, slots=True)
class Requests:
    """Checks requests against one loaded model. `defaults` stands in for what is not set."""

    tokenizer: Tokenizer
    vocabulary: int
    context_tokens: int
    defaults: Sampling
    ladder: Ladder

    def __post_init__(self) -> None:
        if self.tokenizer.vocab_size > self.vocabulary:
            raise ModelFileError(
                "TOKENIZER_FOREIGN",
                f"the tokenizer has {self.tokenizer.vocab_size} tokens, the network "
                f"{self.vocabulary}",
                "use the tokenizer that the model was released with",
            )

    def job(self, request: inference_pb2.GenerateRequest, arrived_s: float) -> Job:
        """Everything about the request, checked. Raises RequestError."""
        request_id = request.request_id or secrets.token_hex(8)
        if not _REQUEST_ID.fullmatch(request_id):
            raise RequestError(
                "BAD_REQUEST_ID",
                "the request id is too long or has other characters than it may",
                "use up to 128 letters, digits, '.', '_', ':' and '-', or leave it empty",
            )
        if request.priority not in types_pb2.Priority.values():
            raise RequestError(
                "UNKNOWN_PRIORITY",
                f"priority is {request.priority}",
                "use a value of ds4.v1.Priority",
            )
        sampling = self._sampling(request.sampling)
        prompt = self.prompt(request.prompt, most_tokens=self.context_tokens - 1)
        room = self.context_tokens - len(prompt.ids)
        asked = request.sampling.max_tokens if request.sampling.HasField("max_tokens") else room
        if asked < 1:
            raise RequestError(
                "MAX_TOKENS_OUT_OF_RANGE", "max_tokens is 0", "use 1 or more, or do not set it"
            )
        stops = [] if request.sampling.ignore_eos else [self.tokenizer.eos_id]
        sequence = Sequence(
            request_id,
            array("i", prompt.ids),
            sampling,
            min(asked, room),
            frozenset(stops),
            _client(request.client),
            request.priority,
            arrived_s,
            arrived_s + request.deadline_ms / 1000 if request.deadline_ms else None,
            CacheUse(check_salt(request.cache.salt), request.cache.bypass, request.cache.no_save),
            prompt.shared_tokens,
            session=check_name(request.session) if request.session else "",
        )
        parser = OutputParser(prompt.opening, list(request.sampling.stop))
        return Job(sequence, parser)

    def prompt(self, prompt: inference_pb2.Prompt, most_tokens: int | None = None) -> Prompt:
        """The ids of any of the three forms. Raises RequestError, also above `most_tokens`."""
        if most_tokens is not None and self._fewest_tokens(prompt) > most_tokens:
            # Encoding would take seconds to say the same.
            raise self._too_long(f"more than {most_tokens}")
        read = self._read(prompt)
        count = len(read.ids)
        if most_tokens is not None and count > most_tokens:
            raise self._too_long(str(count))
        if prompt.HasField("token_ids"):
            self._check_ids(read.ids)
        return read

    def check_count(self, count: int, what: str) -> None:
        """Raise RequestError for lists longer than any sequence: their answers grow with them."""
        if count > self.context_tokens:
            raise RequestError(
                "TOO_MANY_TOKENS",
                f"{count} {what} were asked about, more than the context of {self.context_tokens}",
                "ask in parts",
            )

    def render(self, conversation: types_pb2.Conversation) -> Rendered:
        """The prompt of a chat in this model's own words. Raises RequestError."""
        return render(to_conversation(conversation), self.tokenizer, ladder=self.ladder)

    def _read(self, prompt: inference_pb2.Prompt) -> Prompt:
        match prompt.WhichOneof("form"):
            case "text":
                rendered = complete(prompt.text, self.tokenizer)
            case "conversation":
                rendered = self.render(prompt.conversation)
            case "token_ids":
                return Prompt(prompt.token_ids.ids, Opening.PLAIN)
            case _:
                raise RequestError(
                    "NO_PROMPT",
                    "the request has no prompt",
                    "set text, conversation or token_ids",
                )
        return Prompt(rendered.ids, rendered.opening, rendered.shared_tokens)

    def _fewest_tokens(self, prompt: inference_pb2.Prompt) -> int:
        """Tokens that the prompt has at least, told from its length."""
        texts = [prompt.text, *(message.content for message in prompt.conversation.messages)]
        return sum(map(len, texts)) // self.tokenizer.longest_token_bytes

    def _too_long(self, count: str) -> RequestError:
        return RequestError(
            "PROMPT_TOO_LONG",
            f"the prompt has {count} tokens and leaves no room for an answer in the context of "
            f"{self.context_tokens}",
            "shorten the prompt",
        )

    def _check_ids(self, ids: Items[int]) -> None:
        if not ids:
            raise RequestError("EMPTY_PROMPT", "there are no token ids", "send at least one")
        largest = max(ids)
        if largest >= self.vocabulary:
            raise RequestError(
                "TOKEN_OUT_OF_RANGE",
                f"{largest} is no token id of this model",
                f"ids go from 0 to {self.vocabulary - 1}",
            )

    def _sampling(self, wire: types_pb2.Sampling) -> Sampling:
        if wire.top_logprobs and not wire.logprobs:
            raise RequestError(
                "TOP_LOGPROBS_WITHOUT_LOGPROBS",
                "top_logprobs is set and logprobs is not",
                "set logprobs too",
            )
        default = self.defaults
        return Sampling(
            _decimal(wire.temperature) if wire.HasField("temperature") else default.temperature,
            wire.top_k if wire.HasField("top_k") else default.top_k,
            _decimal(wire.top_p) if wire.HasField("top_p") else default.top_p,
            _decimal(wire.min_p) if wire.HasField("min_p") else default.min_p,
            wire.seed if wire.HasField("seed") else secrets.randbits(64),
            wire.top_logprobs if wire.logprobs else None,
        )


def _client(client: types_pb2.ClientInfo) -> Client:
    if max(len(client.name), len(client.instance)) > _MOST_NAME:
        raise RequestError(
            "CLIENT_NAME_TOO_LONG",
            f"the client's name or instance has more than {_MOST_NAME} characters",
            "use the short name of the program",
        )
    return Client(client.name, client.instance)


def check_salt(salt: str) -> str:
    """The salt. Raises RequestError where no key can be made with it."""
    if len(salt.encode()) > SALT_MAX_BYTES:
        raise RequestError(
            "SALT_TOO_LONG",
            f"the salt has more than {SALT_MAX_BYTES} bytes",
            "use a short name for the domain",
        )
    return salt


def _decimal(value: float) -> float:
    """The number that a person wrote before it became a 32-bit float on the wire: 0.7, not 0.6999….

    Otherwise a limit given exactly would lie outside its range.
    """
    return float(f"{value:.7g}")
