"""Writes kv_keys.json, the golden vectors of the key chain: `python tests/vectors/make_kv_keys.py`.

An independent reference: the bytes to hash are written out by hand, one after the other, and hashed
by the command line tool `openssl`, with nothing of ds4. To be run only when the reference was
wrong, or when the chain gets a new version.
"""

import json
import subprocess
from pathlib import Path

CASES = [  # JSON of the fingerprint, salt, first token id, what the next one is further
    ('{"arch":"v4"}', "", 0, 1),
    ('{"arch":"v4"}', "alice", 0, 1),
    ('{"arch":"v4","kv_numerics_epoch":2}', "", 0, 1),
    ('{"name":"\\u00e9"}', "é", 4294967295, -1),
]
BLOCKS = 3


def sha256(data: bytes) -> bytes:
    run = subprocess.run(
        ["openssl", "dgst", "-sha256", "-binary"], input=data, stdout=subprocess.PIPE, check=True
    )
    return run.stdout


def chain(text: str, salt: str, first: int, step: int) -> dict[str, object]:
    fingerprint = sha256(text.encode())
    encoded = salt.encode()
    data = bytearray(b"ds4kv")
    data.append(1)
    data += fingerprint
    data.append(len(encoded) % 256)
    data.append(len(encoded) // 256)
    data += encoded
    key = root = sha256(bytes(data))
    keys = []
    for block in range(BLOCKS):
        data = bytearray(key)
        for place in range(128):
            number = first + step * (128 * block + place)
            for _ in range(4):
                data.append(number % 256)
                number //= 256
        key = sha256(bytes(data))
        keys.append(key.hex())
    return {"fingerprint": fingerprint.hex(), "root": root.hex(), "keys": keys}


if __name__ == "__main__":
    made = [
        {"json": text, "salt": salt, "first": first, "step": step} | chain(text, salt, first, step)
        for text, salt, first, step in CASES
    ]
    (Path(__file__).parent / "kv_keys.json").write_text(json.dumps(made, indent=1) + "\n")
