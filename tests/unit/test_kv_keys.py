"""The key chain of cached prefixes against golden vectors, and what sets two chains apart."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ds4_runtime import kv_keys

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors/kv_keys.json").read_text()
)
DIGEST = kv_keys.fingerprint_digest('{"arch":"v4"}')


def tokens_of(vector: dict[str, Any]) -> list[int]:
    count = len(vector["keys"]) * kv_keys.BLOCK_TOKENS
    return [vector["first"] + vector["step"] * i for i in range(count)]


@pytest.mark.parametrize("vector", VECTORS)
def test_golden_vectors(vector: dict[str, Any]) -> None:
    """Fingerprint, root and keys are those that an independent reference computed."""
    digest = kv_keys.fingerprint_digest(vector["json"])
    root = kv_keys.root_key(digest, vector["salt"])
    assert digest.hex() == vector["fingerprint"]
    assert root.hex() == vector["root"]
    assert [key.hex() for key in kv_keys.block_keys(root, tokens_of(vector))] == vector["keys"]


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_other_processes_agree(hash_seed: str) -> None:
    """A process with another seed for Python's own hashes computes the same last key."""
    vector = VECTORS[1]
    code = (
        "from ds4_runtime import kv_keys as k\n"
        f"root = k.root_key(k.fingerprint_digest({vector['json']!r}), {vector['salt']!r})\n"
        "print(k.block_keys(root, range(384))[-1].hex())"
    )
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == vector["keys"][-1]


def test_salts_and_fingerprints_share_no_key() -> None:
    """One prefix has no key in common under another salt or another fingerprint."""
    tokens = list(range(512))
    chains = [
        kv_keys.block_keys(kv_keys.root_key(digest, salt), tokens)
        for digest in (DIGEST, kv_keys.fingerprint_digest('{"arch":"v5"}'))
        for salt in ("", "a", "b", "ab")
    ]
    assert len({key for chain in chains for key in chain}) == 8 * 4


def test_a_changed_token_changes_its_block_and_all_after() -> None:
    """Two prompts that differ in one token share the keys before its block and none from there."""
    random_ = random.Random(4)
    root = kv_keys.root_key(DIGEST)
    for _ in range(50):
        tokens = [random_.randrange(129_280) for _ in range(random_.randrange(1, 1_500))]
        place = random_.randrange(len(tokens))
        other = tokens.copy()
        other[place] += 1
        left, right = kv_keys.block_keys(root, tokens), kv_keys.block_keys(root, other)
        block = place // kv_keys.BLOCK_TOKENS
        assert left[:block] == right[:block]
        assert not set(left[block:]) & set(right[block:])


def test_only_complete_blocks_have_keys() -> None:
    """A prefix has as many keys as it has complete blocks, whatever follows them."""
    root = kv_keys.root_key(DIGEST)
    whole = kv_keys.block_keys(root, range(256))
    for count in (0, 1, 127):
        assert kv_keys.block_keys(root, range(count)) == []
        assert kv_keys.block_keys(root, range(256 + count)) == whole


def test_tokens_survive_packing() -> None:
    """Packed token ids unpack to the same ids, the largest included."""
    tokens = [0, 1, 255, 256, 2**32 - 1]
    assert kv_keys.pack_tokens(tokens)[4:12] == b"\x01\0\0\0\xff\0\0\0"
    assert kv_keys.unpack_tokens(kv_keys.pack_tokens(tokens)) == tokens


@pytest.mark.parametrize(
    "text",
    [
        '{"b":1,"a":2}',
        '{"a": 1}',
        '{"a":1} ',
        '["a"]',
        "1",
        "{",
        "",
        '{"a":NaN}',
        '{"a":"é"}',
        '{"a":' + "[" * 30_000,
    ],
)
def test_other_writings_are_refused(text: str) -> None:
    """Only the canonical text of a JSON object has a digest: one value, one fingerprint."""
    with pytest.raises(ValueError, match="canonical"):
        kv_keys.fingerprint_digest(text)


def test_canonical_json_ignores_order() -> None:
    """Parts in any order are one text, and it has a digest."""
    text = kv_keys.canonical_json({"b": [1, 2.5, None], "a": {"d": True, "c": "é"}})
    assert text == '{"a":{"c":"\\u00e9","d":true},"b":[1,2.5,null]}'
    assert len(kv_keys.fingerprint_digest(text)) == kv_keys.KEY_BYTES


def test_bad_arguments_are_refused() -> None:
    """Token ids that are no u32, digests and blocks of other lengths and long salts are errors."""
    root = kv_keys.root_key(DIGEST)
    for bad in (-1, 2**32):
        with pytest.raises(ValueError, match="unsigned 32 bit"):
            kv_keys.block_keys(root, [bad] * 128)
    with pytest.raises(ValueError, match="32 bytes"):
        kv_keys.root_key(DIGEST[:16])
    with pytest.raises(ValueError, match="255"):
        kv_keys.root_key(DIGEST, "é" * 128)
    with pytest.raises(ValueError, match="512"):
        kv_keys.block_key(root, bytes(511))
