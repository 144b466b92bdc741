"""Records of the KV cache become bytes and come back bit for bit, whatever their values are."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ds4_daemon.kernels.numpy_ops import NumpyOps
from ds4_daemon.kvlink import grid
from ds4_daemon.kvlink.layout import Layout
from ds4_daemon.kvlink.pack import (
    Codec,
    Pieces,
    Record,
    RecordError,
    pack,
    pack_alike,
    places,
    unpack,
)

# The rows of V4 Flash in fewer layers: sliding window only, CSA, HCA.
LAYOUT = Layout(ratios=(0, 4, 128), head_dim=512, rotated=64, index_dim=128, window=127)
# Every value of a code: sign, exponent and mantissa as the formats define them.
E4M3 = [
    s * (m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7))
    for s, e, m in itertools.product((1, -1), range(16), range(8))
    if (e, m) != (15, 7)
]
E2M1 = [s * v for s in (1, -1) for v in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]


NOTHING = np.empty(0, np.float32)
GOLDEN: list[Any] = json.loads((Path(__file__).parents[1] / "vectors/kv_codecs.json").read_text())


def rounded(seed: int, tokens: int = 128) -> tuple[Record, Record]:
    """A block and a checkpoint as the network rounds them, values of many sizes."""
    ops, random = NumpyOps(), np.random.default_rng(seed)

    def rows(n: int) -> np.ndarray:
        sizes = 10.0 ** random.uniform(-6, 6, (n, 1))
        x = (random.standard_normal((n, 512)) * sizes).astype(np.float32)
        return np.concatenate([ops.fp8_round(x[:, :448]), x[:, 448:]], 1)

    block, checkpoint = LAYOUT.block, LAYOUT.checkpoint(tokens)
    keys = random.standard_normal((sum(block.keys), 128)).astype(np.float32)
    rest = random.standard_normal(sum(checkpoint.rest)).astype(np.float32)
    none = np.empty((0, 128), np.float32)
    return (
        Record(rows(sum(block.rows)), ops.fp4_round(ops.hadamard(keys)), rest[:0]),
        Record(rows(sum(checkpoint.rows)), none, rest),
    )


def back(codec: Codec, data: bytes, like: Record, layout: Layout = LAYOUT) -> Record:
    out = Record(*(np.full_like(part, np.nan) for part in like))
    unpack(codec, np.frombuffer(data, np.uint8)[None], one(out), layout)
    return out


def one(record: Record) -> Pieces:
    """A record as the place of one, of a single layer."""
    return Pieces(*((part[None],) for part in record))


def equal(a: Record, b: Record) -> bool:
    return all(grid.same(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_rounded_rows_are_packed_and_come_back(seed: int) -> None:
    """What the network rounds takes FP8 and FP4 codes, rotated channels as they are."""
    for record in rounded(seed):
        codec, data = pack(record.pieces, LAYOUT)
        assert codec is Codec.PACKED_F32
        assert equal(back(codec, data, record), record)
        halved = record.rows.copy()
        halved[:, 448:] = (halved[:, 448:].view(np.uint32) & 0xFFFF0000).view(np.float32)
        narrow = record._replace(rows=halved)
        codec, shorter = pack(narrow.pieces, LAYOUT)
        assert codec is Codec.PACKED
        assert len(data) - len(shorter) == 128 * len(halved)
        assert equal(back(codec, shorter, narrow), narrow)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda one: one["codec"])
def test_golden_records(golden: dict[str, str]) -> None:
    """Each codec's bytes are those of an independent reference, both ways: disks keep them."""
    layout = Layout(ratios=(0,), head_dim=192, rotated=64, index_dim=64, window=127)
    rows, keys, rest = (
        np.frombuffer(bytes.fromhex(golden[name]), np.float32) for name in ("rows", "keys", "rest")
    )
    record = Record(rows.reshape(-1, 192), keys.reshape(-1, 64), rest)
    codec, data = pack(record.pieces, layout)
    assert (codec.name, data.hex()) == (golden["codec"], golden["record"])
    assert equal(back(codec, data, record, layout), record)


@pytest.mark.parametrize("at_once", [1, 20, 100])
def test_a_record_packed_in_parts_is_the_same(at_once: int) -> None:
    """However few layers are packed together, the bytes are those of all at once."""
    for record in rounded(7):
        layers = Pieces(*(tuple(np.array_split(part, 9)) for part in record))
        told: list[int] = []
        assert pack(layers, LAYOUT, at_once, told.append) == pack(record.pieces, LAYOUT)
        assert len(told) > 1
        layers.rows[-1][-1, 0] = 0.3  # off the grid, in the last part only
        codec, data = pack(layers, LAYOUT, at_once)
        assert codec is Codec.RAW
        assert equal(back(codec, data, record), layers.joined(LAYOUT))


def test_a_packed_block_has_the_documented_size() -> None:
    """583 bytes a row and 68 a key with bf16 rotations, 711 a row with float32 ones."""
    v4 = Layout((0, 0, *(4, 128) * 20, 4), 512, 64, 128, 127)
    record = Record(np.zeros((692, 512), np.float32), np.zeros((672, 128), np.float32), NOTHING)
    codec, data = pack(record.pieces, v4)
    assert (codec, len(data)) == (Codec.PACKED, 692 * 583 + 672 * 68)
    assert len(data) == 449_132
    record.rows[0, 511] = np.float32(0.1)
    codec, data = pack(record.pieces, v4)
    assert (codec, len(data)) == (Codec.PACKED_F32, 692 * 711 + 672 * 68)


@pytest.mark.parametrize("scale", [-126, -60, -9, 0, 1, 40, 100])
def test_every_code_at_every_scale_is_exact(scale: int) -> None:
    """All values of both formats, subnormal ones and both zeros included, keep their bits."""
    for values, size, to, of, per in (
        (E4M3, 64, grid.to_fp8, grid.from_fp8, 1),
        (E2M1, 32, grid.to_fp4, grid.from_fp4, 2),
    ):
        rows = np.resize(np.array(values), (len(values), 4 * size))
        rows[:, ::size] = max(values)  # every block keeps the scale
        x = np.ldexp(rows, max(scale, -120) if size == 64 else scale + 6).astype(np.float32)
        codes, scales = to(x)
        assert codes.shape == (len(x), x.shape[1] // per)
        out = np.full_like(x, np.nan)
        of(codes, scales, out)
        assert grid.same(out, x)


@pytest.mark.parametrize(
    ("value", "codec"),
    [
        (1.0 + 2.0**-20, Codec.RAW),
        (1.0 + 2.0**-7, Codec.BF16_PLANES),
        (1e-45, Codec.RAW),
        (np.float32(2.0**-126), Codec.BF16_PLANES),
        (3e38, Codec.RAW),
        (np.inf, Codec.BF16_PLANES),
        (np.nan, Codec.BF16_PLANES),
    ],
)
def test_values_off_the_grid_take_a_wider_codec(value: float, codec: Codec) -> None:
    """One value that FP8 cannot hold, and the record is written as bf16 or float32, exactly."""
    record, _ = rounded(1)
    rows = (record.rows.view(np.uint32) & 0xFFFF0000).view(np.float32)
    rows[5, :448] = 1.0
    rows[5, 3] = value
    record = record._replace(rows=rows)
    got, data = pack(record.pieces, LAYOUT)
    assert got is codec
    assert equal(back(got, data, record), record)


def test_a_signalling_nan_and_minus_zero_survive() -> None:
    """Bits are kept, not numbers."""
    record, _ = rounded(2)
    record.rows[0, :448] = -0.0
    record.keys[0] = -0.0
    codec, data = pack(record.pieces, LAYOUT)
    assert codec is Codec.PACKED_F32
    assert equal(back(codec, data, record), record)
    record.rows.view(np.uint32)[1, 7] = 0x7F800001
    codec, data = pack(record.pieces, LAYOUT)
    assert codec is Codec.RAW
    assert equal(back(codec, data, record), record)


def test_random_bits_survive() -> None:
    """Any 32 bits at all come back."""
    random = np.random.default_rng(3)
    like, _ = rounded(3)
    bits = [random.integers(0, 2**32, part.shape, np.uint32).view(np.float32) for part in like]
    record = Record(*bits)
    codec, data = pack(record.pieces, LAYOUT)
    assert codec is Codec.RAW
    assert equal(back(codec, data, record), record)


@pytest.mark.parametrize("codec", Codec)
def test_another_size_is_refused(codec: Codec) -> None:
    """Bytes that are too few or too many for their shape fill nothing."""
    out = places(LAYOUT.block, LAYOUT)
    for size in (0, 1, 10_000_000):
        with pytest.raises(RecordError) as caught:
            unpack(codec, np.zeros((1, size), np.uint8), out, LAYOUT)
        assert caught.value.reason == "RECORD_SIZE"


@pytest.mark.parametrize("bits", [32, 24, 16])
def test_many_records_unpack_into_the_layers_of_a_session(bits: int) -> None:
    """Blocks side by side, at any distance, come to their places in every layer, in every codec."""
    mask = np.uint32(2**32 - 2 ** (32 - bits))
    for rounds in (True, False):
        records = []
        for seed in range(3):
            rows, keys, rest = rounded(seed)[0]
            if not rounds:
                rows, keys = rows * np.float32(1.7), keys * np.float32(1.3)
            cut = (rows.view(np.uint32) & mask).view(np.float32)
            rows = np.concatenate([rows[:, :448] if rounds else cut[:, :448], cut[:, 448:]], 1)
            keys = keys if rounds else (keys.view(np.uint32) & mask).view(np.float32)
            records.append(Record(rows, keys, rest))
        packed = [pack(record.pieces, LAYOUT) for record in records]
        codecs = {codec for codec, _ in packed}
        assert len(codecs) == 1
        size = len(packed[0][1])
        lain = np.zeros((3, size + 13), np.uint8)
        for place, (_, data) in zip(lain, packed, strict=True):
            place[:size] = np.frombuffer(data, np.uint8)
        # Layers of a session, whose blocks follow one another; the first and last are not ours.
        csa, hca = (np.full((5 * n, 512), np.nan, np.float32) for n in (32, 1))
        keys = np.full((5 * 32, 128), np.nan, np.float32)
        out = Pieces(
            (csa[32:-32].reshape(3, 32, 512), hca[1:-1].reshape(3, 1, 512)),
            (keys[32:-32].reshape(3, 32, 128),),
            (),
        )
        unpack(codecs.pop(), lain[:, :size], out, LAYOUT)
        for i, record in enumerate(records, 1):
            assert grid.same(csa[32 * i : 32 * i + 32], record.rows[:32])
            assert grid.same(hca[i : i + 1], record.rows[32:])
            assert grid.same(keys[32 * i : 32 * i + 32], record.keys)
        for array in (csa, hca, keys):
            n = len(array) // 5
            assert np.isnan(array[:n]).all() and np.isnan(array[-n:]).all()


def test_pieces_join_in_their_order() -> None:
    """Layers lie one after another, in the order they are given."""
    parts = tuple(np.full((n, 512), n, np.float32) for n in (2, 3))
    joined = Pieces(parts, (), (np.arange(4, dtype=np.float32).reshape(2, 2),)).joined(LAYOUT)
    assert joined.rows[:, 0].tolist() == [2, 2, 3, 3, 3]
    assert joined.keys.shape == (0, 128)
    assert joined.rest.tolist() == [0, 1, 2, 3]


def test_a_model_whose_windows_cross_blocks_has_no_records() -> None:
    """A ratio that does not divide 128 is told, not rounded."""
    assert LAYOUT.fits
    assert not Layout((0, 24), 512, 64, 128, 127).fits


@pytest.mark.parametrize("odd", [None, "a rotated channel", "a value off the grid"])
def test_records_packed_together_are_those_packed_alone(odd: str | None) -> None:
    """Each gets the codec and the bytes that it would get alone, whatever its neighbours hold."""
    records = [rounded(seed)[0] for seed in range(3)]
    narrow = [r._replace(rows=(r.rows.view(np.uint32) & 0xFFFF0000).view(np.float32))
              for r in records]  # fmt: skip
    if odd == "a rotated channel":
        narrow[1] = records[1]
    elif odd is not None:
        narrow[1].rows[0, 0] = 0.3
    pieces = [record.pieces for record in narrow]
    together = pack_alike(pieces, LAYOUT)
    assert together == [pack(one, LAYOUT) for one in pieces]
    assert len({codec for codec, _ in together}) == (1 if odd is None else 2)
