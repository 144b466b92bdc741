"""The tokenizer: ids of both file forms, what text from outside cannot do, and broken files."""

import json
import random
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from ds4_daemon.errors import ModelFileError, RequestError
from ds4_daemon.text.tokenizer import BOS, EOS, REQUIRED_SPECIALS, GgufTokenType, Tokenizer

from tests.text.conftest import PUBLISHED

HERE = Path(__file__).parent

AWKWARD = [
    "",
    " ",
    "\n",
    "       leading and trailing       ",
    "a  b   c    d\t\t\te \t f",
    "line\n\n\n\n  next\r\n\r\n\tlast\r",
    "1 12 123 1234 12345 3.14159 1,000,000 ٣٤٥ ⅷ ½ ²",
    "你好世界，今天天气怎么样？東京タワー・カタカナ ひらがな 한국어 ｶﾀｶﾅ",
    "混ぜるmixed文字列with英語123数字",
    "🙂👍🏽👩‍👩‍👧‍👦🇮🇹🏴󠁧󠁢󠁥󠁮󠁧󠁿 e\u0301 ñ n\u0303 \u200d\ufeff\u200b",
    "מה שלומך مرحبا سلام สวัสดี नमस्ते ქართული አማርኛ",
    "don't I'll we're they've .method() $var #tag @name (x) [y] {z} <tag/> a/b\\c",
    "!!!???...---===***~~~```\n```python\nx = 1\n```",
    'for (int i=0;i<10;++i){printf("%d\\n",i);} // ok',
    "\x00\x01\x7f\x80\x9f\xa0\xad",
    "".join(BOS for _ in range(3)) + EOS + "<|EOT|><dsml:</think>｜DSML｜",
]


def corpus(seed: int) -> list[str]:
    """Awkward text, this package's own sources, and random characters of every script."""
    rng = random.Random(seed)
    texts = [*AWKWARD, *(path.read_text("utf-8") for path in sorted(HERE.glob("*.py")))]
    assigned = [
        chr(code)
        for code in range(0x20000)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    blanks = [" ", "  ", "\n", "\t", "\r\n", "\u3000", "\u00a0", "1", "99", "a", "的", "!", "'"]
    for _ in range(400):
        pool = blanks + rng.sample(assigned, 12)
        texts.append("".join(rng.choices(pool, k=rng.randrange(1, 200))))
    return texts


@pytest.fixture(scope="module")
def gguf_fields() -> dict[str, Any]:
    """The published tokenizer as the metadata of a GGUF file, as converters write it."""
    spec = json.loads(PUBLISHED.read_text("utf-8"))
    types = dict.fromkeys(spec["model"]["vocab"].values(), GgufTokenType.NORMAL)
    tokens = {token_id: token for token, token_id in spec["model"]["vocab"].items()}
    for added in spec["added_tokens"]:
        tokens[added["id"]] = added["content"]
        special = GgufTokenType.CONTROL if added["special"] else GgufTokenType.USER_DEFINED
        types[added["id"]] = special
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "joyai-llm",
        "tokenizer.ggml.tokens": [tokens[token_id] for token_id in range(len(tokens))],
        "tokenizer.ggml.token_type": [int(types[token_id]) for token_id in range(len(tokens))],
        "tokenizer.ggml.merges": spec["model"]["merges"],
    }


@pytest.fixture(scope="module")
def from_gguf(gguf_fields: dict[str, Any]) -> Tokenizer:
    return Tokenizer.load(gguf_fields)


def test_gguf_gives_the_ids_of_the_json(tokenizer: Tokenizer, from_gguf: Tokenizer) -> None:
    """A tokenizer built from GGUF metadata encodes everything as its tokenizer.json does."""
    for text in corpus(seed=1):
        assert from_gguf.encode(text) == tokenizer.encode(text)
    assert from_gguf.specials == tokenizer.specials
    assert from_gguf.vocab_size == tokenizer.vocab_size == 129_280
    assert (from_gguf.bos_id, from_gguf.eos_id) == (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)


def test_ids_are_those_of_the_library(
    tokenizer: Tokenizer, published_plain: tokenizers.Tokenizer
) -> None:
    """Text is encoded as the library does without the added vocabulary, and decodes to itself."""
    for text in corpus(seed=2):
        ids = tokenizer.encode(text)
        assert ids == published_plain.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text


def test_every_piece_is_that_of_the_library(
    tokenizer: Tokenizer, from_gguf: Tokenizer, published: tokenizers.Tokenizer
) -> None:
    """Each token decodes to what the library decodes it to, and its bytes agree in both forms."""
    singles = published.decode_batch(
        [[token_id] for token_id in range(tokenizer.vocab_size)], skip_special_tokens=False
    )
    for token_id, expected in enumerate(singles):
        assert tokenizer.decode([token_id]) == expected
        assert from_gguf.piece(token_id) == tokenizer.piece(token_id)


def test_text_cannot_spell_a_special_token(tokenizer: Tokenizer) -> None:
    """No spelling of the added vocabulary in outside text becomes a token of it."""
    for spelling in tokenizer.specials.values():
        ids = tokenizer.encode(f"a{spelling} {spelling}")
        assert not set(ids) & set(tokenizer.specials)
        assert tokenizer.decode(ids) == f"a{spelling} {spelling}"


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    """Text that is no valid Unicode is refused by name."""
    with pytest.raises(RequestError) as raised:
        tokenizer.encode("a\ud800")
    assert raised.value.reason == "BAD_TEXT"


@pytest.mark.parametrize("token_id", [-1, 129_280, sys.maxsize])
def test_foreign_id_is_refused(token_id: int, tokenizer: Tokenizer) -> None:
    """Decoding an id outside the vocabulary is refused by name."""
    with pytest.raises(RequestError) as raised:
        tokenizer.decode([token_id])
    assert raised.value.reason == "UNKNOWN_TOKEN_ID"


def small_spec(specials: tuple[str, ...] = REQUIRED_SPECIALS) -> dict[str, Any]:
    added = [
        {
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            "id": 3 + index,
            "content": spelling,
            "special": True,
        }
        for index, spelling in enumerate(specials)
    ]
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": added,
        "model": model,
        "pre_tokenizer": {**byte_level, "use_regex": False},
        "decoder": {**byte_level, "use_regex": False},
    }


def test_specials_are_found_by_spelling(tmp_path: Path) -> None:
    """A vocabulary of another size with its special tokens elsewhere works alike."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(small_spec()), "utf-8")
    tokenizer = Tokenizer.load(path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (3, 4, 10)
    assert tokenizer.encode_completion("abba") == [3, 2, 1, 0]
    assert tokenizer.decode([3, 2, 9]) == f"{BOS}ab｜DSML｜"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "TOKENIZER_BROKEN"),
        (b"{", "TOKENIZER_BROKEN"),
        (b"[]", "TOKENIZER_BROKEN"),
        (b"\xff\xfe", "TOKENIZER_UNREADABLE"),
        (b'{"version": "1.0", "model": {"type": "BPE"}}', "TOKENIZER_BROKEN"),
        (json.dumps({**small_spec(), "decoder": None}).encode(), "TOKENIZER_FOREIGN"),
        (
            json.dumps(
                {
                    **small_spec(),
                    "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
                }
            ).encode(),
            "TOKENIZER_FOREIGN",
        ),
        (json.dumps(small_spec(REQUIRED_SPECIALS[1:])).encode(), "TOKENIZER_SPECIAL_MISSING"),
        (json.dumps(small_spec(())).encode(), "TOKENIZER_SPECIAL_MISSING"),
        (PUBLISHED.read_bytes()[:100_000], "TOKENIZER_BROKEN"),
    ],
)
def test_broken_json_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    """A tokenizer.json that cannot serve is a model file error with its reason and a hint."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as raised:
        Tokenizer.load(path)
    assert raised.value.reason == reason
    assert raised.value.hint


def test_absent_tokenizer_is_refused(tmp_path: Path) -> None:
    """No tokenizer at all, and a path where none is, are model file errors too."""
    with pytest.raises(ModelFileError) as raised:
        Tokenizer.load(None)
    assert raised.value.reason == "TOKENIZER_MISSING"
    with pytest.raises(ModelFileError) as raised:
        Tokenizer.load(tmp_path / "tokenizer.json")
    assert raised.value.reason == "TOKENIZER_UNREADABLE"


GGUF = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "joyai-llm",
    "tokenizer.ggml.tokens": ["a", "b", "ab", *REQUIRED_SPECIALS],
    "tokenizer.ggml.token_type": [1, 1, 1, *[3] * len(REQUIRED_SPECIALS)],
    "tokenizer.ggml.merges": ["a b"],
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokenizer.ggml.model": "llama"}, "TOKENIZER_FOREIGN"),
        ({"tokenizer.ggml.pre": "qwen2"}, "TOKENIZER_FOREIGN"),
        ({"tokenizer.ggml.merges": ["a c"]}, "TOKENIZER_BROKEN"),
        ({"tokenizer.ggml.merges": ["nonsense"]}, "TOKENIZER_BROKEN"),
        ({"tokenizer.ggml.token_type": [1]}, "TOKENIZER_BROKEN"),
        ({"tokenizer.ggml.token_type": [99] * 10}, "TOKENIZER_BROKEN"),
        ({"tokenizer.ggml.token_type": [1] * 10}, "TOKENIZER_SPECIAL_MISSING"),
        ({"tokenizer.ggml.tokens": 7}, "TOKENIZER_BROKEN"),
        ({"tokenizer.ggml.tokens": list(range(10))}, "TOKENIZER_BROKEN"),
        ({"tokenizer.ggml.model": None}, "TOKENIZER_FOREIGN"),
        ({"tokenizer.ggml.merges": [7]}, "TOKENIZER_BROKEN"),
    ],
)
def test_broken_gguf_metadata_is_refused(change: dict[str, Any], reason: str) -> None:
    """GGUF metadata of another tokenizer, or that does not fit together, is refused by reason."""
    assert Tokenizer.load(GGUF).encode("abba") == [2, 1, 0]
    with pytest.raises(ModelFileError) as raised:
        Tokenizer.load({**GGUF, **change})
    assert raised.value.reason == reason
    assert raised.value.hint


@pytest.mark.parametrize("missing", sorted(GGUF))
def test_incomplete_gguf_metadata_is_refused(missing: str) -> None:
    """Each piece of GGUF metadata is needed, and named when it is not there."""
    with pytest.raises(ModelFileError) as raised:
        Tokenizer.load({key: value for key, value in GGUF.items() if key != missing})
    assert raised.value.reason == "TOKENIZER_MISSING"
    assert missing in raised.value.message
