"""Writes kv_codecs.json, golden records of each codec: `python tests/vectors/make_kv_codecs.py`.

An independent reference of docs/kv-format.md: codes are drawn, values follow from them by the
definitions of E4M3 and E2M1, bytes are written one after the other, with nothing of ds4 and without
NumPy. To be run only when the reference was wrong, or when a codec is added: what is on disk must
stay readable.
"""

import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path

ROWS, PLAIN, ROTATED = 3, 128, 64  # channels of a row: rounded ones, then rotated ones
KEYS, KEY = 2, 64
REST = 5

dice = random.Random(4)


def e4m3(code: int) -> float:
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    size = mantissa / 8 * 2.0**-6 if not exponent else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return math.copysign(size, -sign)


def e2m1(code: int) -> float:
    return math.copysign((0, 0.5, 1, 1.5, 2, 3, 4, 6)[code & 7], -(code >> 3))


def f32(value: float) -> bytes:
    return struct.pack("<f", value)


def coded(
    blocks: int, size: int, codes: list[int], largest: list[int], value: Callable[[int], float]
) -> tuple[list[int], bytes, bytes]:
    """Codes and scales of so many blocks, and their values. One code of a block is among the
    largest, or the block would have a smaller scale."""
    drawn, scales, values = list[int](), bytearray(), bytearray()
    for _ in range(blocks):
        block = [dice.choice(codes) for _ in range(size)]
        block[dice.randrange(size)] = dice.choice(largest)
        scales.append(dice.randrange(90, 160))
        values += b"".join(f32(value(code) * 2.0 ** (scales[-1] - 127)) for code in block)
        drawn += block
    return drawn, bytes(scales), bytes(values)


def bits(count: int, low: bool) -> bytes:
    """Any float32 that are finite, with the lower half of their bits or without."""
    drawn = bytearray()
    for _ in range(count):
        drawn += bytes(dice.randrange(256) if low else 0 for _ in range(2))
        drawn += bytes([dice.randrange(128), dice.choice((0x3F, 0xBE, 0x01, 0x80, 0x7E))])
    return bytes(drawn)


def packed(narrow: bool) -> dict[str, str]:
    row_codes, row_scales, plain = coded(
        ROWS * PLAIN // 64, 64, [c for c in range(256) if c & 127 != 127], [120, 126, 248], e4m3
    )
    key_codes, key_scales, keys = coded(KEYS * KEY // 32, 32, list(range(16)), [6, 7, 15], e2m1)
    rotated, rest = bits(ROWS * ROTATED, not narrow), bits(REST, low=True)
    rows = b"".join(
        plain[4 * PLAIN * i : 4 * PLAIN * (i + 1)]
        + rotated[4 * ROTATED * i : 4 * ROTATED * (i + 1)]
        for i in range(ROWS)
    )
    data = bytes(row_codes) + row_scales
    for at in range(0, len(rotated), 4):
        data += rotated[at + 2 : at + 4] if narrow else rotated[at : at + 4]
    for at in range(0, len(key_codes), 2):
        data += bytes([key_codes[at] + 16 * key_codes[at + 1]])
    data += key_scales + rest
    return shown("PACKED" if narrow else "PACKED_F32", rows, keys, rest, data)


def planes() -> dict[str, str]:
    rows, keys = (bits(n, low=False) for n in (ROWS * (PLAIN + ROTATED), KEYS * KEY))
    rest = bits(REST, low=True)
    data = rows[3::4] + rows[2::4] + keys[3::4] + keys[2::4] + rest
    return shown("BF16_PLANES", rows, keys, rest, data)


def raw() -> dict[str, str]:
    rows, keys, rest = (bits(n, low=True) for n in (ROWS * (PLAIN + ROTATED), KEYS * KEY, REST))
    return shown("RAW", rows, keys, rest, rows + keys + rest)


def shown(codec: str, rows: bytes, keys: bytes, rest: bytes, data: bytes) -> dict[str, str]:
    values = {"rows": rows.hex(), "keys": keys.hex(), "rest": rest.hex()}
    return {"codec": codec} | values | {"record": data.hex()}


if __name__ == "__main__":
    made = [raw(), planes(), packed(narrow=True), packed(narrow=False)]
    (Path(__file__).parent / "kv_codecs.json").write_text(json.dumps(made, indent=1) + "\n")
