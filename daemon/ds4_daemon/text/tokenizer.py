"""Token ids from text and bytes from token ids, for the tokenizer that a model came with.

Owns the byte-level BPE and the added vocabulary, read from a tokenizer.json or from GGUF metadata.
Special tokens are found by their spelling, never by a number. Text from outside is encoded without
the added vocabulary, so whatever it spells it cannot become a special token. It knows nothing of
chats (`chat` renders them) nor of streaming (`stream`). Called by `chat`, `stream` and `rpc`.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ds4_daemon.errors import ModelFileError, RequestError

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK = "<think>"
END_THINK = "</think>"
DSML = "｜DSML｜"  # opens every tag of a tool call: <｜DSML｜invoke name="...">

REQUIRED_SPECIALS = (BOS, EOS, USER, ASSISTANT, THINK, END_THINK, DSML)

# The pre-tokenizer that GGUF calls "joyai-llm": each pattern cuts what the ones before left whole.
GGUF_PRE_TOKENIZER = "joyai-llm"
_SPLITS = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
        r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+"
        r"|\s+(?!\S)"
        r"|\s+"
    ),
)


class GgufTokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Prompt(NamedTuple):
    """A rendered prompt: `text`, and where in it (start, end) the template's own specials stand."""

    text: str
    special_ranges: Sequence[tuple[int, int]]


class Tokenizer:
    """Encodes and decodes for one model. Safe to share between threads; encoding drops the GIL."""

    def __init__(self, bpe: tokenizers.Tokenizer, added: Mapping[int, str], origin: str) -> None:
        """`bpe` has no added vocabulary; `added` is all of it; `origin` names its file."""
        self._bpe = bpe
        self.specials = dict(added)
        self._special_ids = {spelling: token_id for token_id, spelling in added.items()}
        self._pieces: dict[int, bytes] = {}
        missing = [spelling for spelling in REQUIRED_SPECIALS if spelling not in self._special_ids]
        if missing:
            raise ModelFileError(
                "TOKENIZER_SPECIAL_MISSING",
                f"The tokenizer of {origin} has no special token {', '.join(missing)}.",
                "use the tokenizer that DeepSeek V4 was released with",
            )
        self.bos_id = self._special_ids[BOS]
        self.eos_id = self._special_ids[EOS]
        self.vocab_size = 1 + max(*added, max(bpe.get_vocab().values(), default=0))

    @classmethod
    def load(cls, source: Path | Mapping[str, Any] | None) -> Self:
        """From what an opened model names as the source of its tokenizer."""
        if source is None:
            raise ModelFileError(
                "TOKENIZER_MISSING",
                "The model comes without a tokenizer.",
                "put the tokenizer.json of the model beside its weights",
            )
        return cls.from_json(source) if isinstance(source, Path) else cls.from_gguf(source)

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """From a tokenizer.json; ModelFileError when it cannot be read or is of another kind."""
        hint = "fetch the tokenizer.json of the model again"
        try:
            full = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(
                "TOKENIZER_UNREADABLE", f"The tokenizer {path} cannot be read: {error}.", hint
            ) from error
        except Exception as error:  # the library raises no narrower class for a bad file
            raise ModelFileError(
                "TOKENIZER_BROKEN", f"The tokenizer {path} is not valid: {error}.", hint
            ) from error
        byte_level = isinstance(full.decoder, decoders.ByteLevel)
        if not isinstance(full.model, models.BPE) or not byte_level:
            raise ModelFileError(
                "TOKENIZER_FOREIGN", f"The tokenizer {path} is not a byte-level BPE.", hint
            )
        bpe = tokenizers.Tokenizer(full.model)
        if full.pre_tokenizer is not None:
            bpe.pre_tokenizer = full.pre_tokenizer
        if full.normalizer is not None:
            bpe.normalizer = full.normalizer
        added = full.get_added_tokens_decoder()
        return cls(bpe, {key: token.content for key, token in added.items()}, str(path))

    @classmethod
    def from_gguf(cls, fields: Mapping[str, Any]) -> Self:
        """From the `tokenizer.ggml.*` metadata of a GGUF file; ids are those of the same
        tokenizer's tokenizer.json. ModelFileError for another kind or incomplete metadata."""
        hint = "use a GGUF file of DeepSeek V4, converted with its tokenizer"
        try:
            kind = (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])
            tokens = [str(token) for token in fields["tokenizer.ggml.tokens"]]
            merges = [str(merge) for merge in fields["tokenizer.ggml.merges"]]
            types = [GgufTokenType(value) for value in fields["tokenizer.ggml.token_type"]]
        except KeyError as error:
            raise ModelFileError(
                "TOKENIZER_MISSING", f"The GGUF file has no metadata {error}.", hint
            ) from error
        except (TypeError, ValueError) as error:
            raise ModelFileError(
                "TOKENIZER_BROKEN", f"The GGUF file's tokenizer is not valid: {error}.", hint
            ) from error
        if kind != ("gpt2", GGUF_PRE_TOKENIZER):
            raise ModelFileError(
                "TOKENIZER_FOREIGN", f"The GGUF file's tokenizer is {kind[0]} / {kind[1]}.", hint
            )
        if len(types) != len(tokens):
            raise ModelFileError(
                "TOKENIZER_BROKEN",
                f"The GGUF file has {len(tokens)} tokens but {len(types)} token types.",
                hint,
            )
        vocab: dict[str, int] = {}
        added: dict[int, str] = {}
        for token_id, (token, token_type) in enumerate(zip(tokens, types, strict=True)):
            if token_type is GgufTokenType.NORMAL:
                vocab[token] = token_id
            elif token_type in (GgufTokenType.CONTROL, GgufTokenType.USER_DEFINED):
                added[token_id] = token
        return cls(_byte_level_bpe(vocab, merges, hint), added, "the GGUF file")

    @cached_property
    def longest_token_bytes(self) -> int:
        """No token stands for more bytes than this."""
        return max(len(token.encode()) for token in self._bpe.get_vocab())

    def special_id(self, spelling: str) -> int:
        """Id of a special token; RequestError when this model's vocabulary lacks it."""
        found = self._special_ids.get(spelling)
        if found is None:
            raise RequestError(
                "SPECIAL_TOKEN_MISSING",
                f"This model's vocabulary has no token {spelling}.",
                "leave out what needs it, such as a reminder message",
            )
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of text from outside: specials that it spells come out as ordinary tokens."""
        return self._encode_all([text])[0]

    def encode_completion(self, text: str) -> list[int]:
        """Ids of a plain completion: begin-of-text, then the text."""
        return [self.bos_id, *self.encode(text)]

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a rendered prompt: only its special ranges become special tokens."""
        specials: list[int] = []
        between: list[str] = []
        end = 0
        for start, stop in prompt.special_ranges:
            between.append(prompt.text[end:start])
            specials.append(self.special_id(prompt.text[start:stop]))
            end = stop
        between.append(prompt.text[end:])
        first, *rest = self._encode_all(between)
        ids = first
        for special, piece in zip(specials, rest, strict=True):
            ids.append(special)
            ids.extend(piece)
        return ids

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        try:
            encodings = self._bpe.encode_batch_fast(texts, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise RequestError(
                "BAD_TEXT", "The text has half of a surrogate pair.", "send valid Unicode"
            ) from error
        return [encoding.ids for encoding in encodings]

    def piece(self, token_id: int) -> bytes:
        """Bytes of one token, perhaps a part of a character; a special's are its spelling.
        Empty for an id that stands for nothing (a padded vocabulary has some)."""
        found = self._pieces.get(token_id)
        if found is None:
            special = self.specials.get(token_id)
            if special is not None:
                found = special.encode()
            else:
                token = self._bpe.id_to_token(token_id) if token_id >= 0 else None
                found = _token_bytes(token or "")
            self._pieces[token_id] = found
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
        pieces: list[bytes] = []
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise RequestError(
                    "UNKNOWN_TOKEN_ID",
                    f"{token_id} is not a token id of this model.",
                    f"ids go from 0 to {self.vocab_size - 1}",
                )
            pieces.append(self.piece(token_id))
        return b"".join(pieces).decode("utf-8", "replace")


def _byte_level_bpe(
    vocab: dict[str, int], merges: Sequence[str], hint: str
) -> tokenizers.Tokenizer:
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        pairs.append((left, right))
    try:
        bpe = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    except Exception as error:  # the library raises no narrower class for a bad merge
        raise ModelFileError(
            "TOKENIZER_BROKEN", f"The GGUF file's merges do not fit its tokens: {error}.", hint
        ) from error
    splits = [
        pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated", invert=False)
        for pattern in _SPLITS
    ]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    return bpe


def _byte_alphabet() -> dict[int, int]:
    """From the character that byte-level BPE writes for a byte to that byte.

    Printable Latin-1 stands for itself; the other 68 bytes, in order, follow from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: byte for byte in printable}
    alphabet.update({0x100 + index: byte for index, byte in enumerate(others)})
    return alphabet


_BYTE_ALPHABET = _byte_alphabet()


def _token_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTE_ALPHABET[ord(character)] for character in token)
    except KeyError:  # written in plain characters, as only special tokens are
        return token.encode()
