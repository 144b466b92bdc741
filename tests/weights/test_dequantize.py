"""Every weight format, in NumPy and in MLX, against definitions that are not ours: gguf, torch."""

import gguf
import mlx.core as mx
import numpy as np
import pytest
import torch
from ds4_daemon.model.quant import blocks_mlx, dequantize, integers
from ds4_daemon.model.tensor import Format, Tensor, scale_shape

# Where each ggml block keeps its f16 factors, which random bytes would make infinite or NaN.
HALVES = {
    Format.Q8_0: [0],
    Format.Q4_K: [0, 2],
    Format.Q2_K: [80, 82],
    Format.IQ2_XXS: [0],
    Format.MXFP4: [],
}
BLOCKED = list(HALVES)
LARGEST_HALF = 65504.0
SMALLEST_HALF = 2.0**-24
EXTREME_HALVES = [0.0, -0.0, 1.0, SMALLEST_HALF, -SMALLEST_HALF, 2.0**-14, LARGEST_HALF, -1e-3]


def random_rows(fmt: Format, rows: int, columns: int, seed: int) -> np.ndarray:
    """uint8 (rows, row bytes): every byte pattern, with finite factors, extremes among them."""
    rng = np.random.default_rng(seed)
    count = columns // fmt.block
    raw = rng.integers(0, 256, (rows, count, fmt.block_bytes), np.uint8)
    raw[2] = 0xFF  # all codes and scales at their top
    raw[3] = 0
    for at in HALVES[fmt]:
        halves = rng.normal(0, 0.05, (rows, count)).astype(np.float16)
        extremes = np.resize(np.array(EXTREME_HALVES, np.float16), (2, count))
        halves[:2] = halves[2:4] = extremes[:, rng.permutation(count)]
        raw[..., at : at + 2] = halves[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


def tensor(fmt: Format, shape: tuple[int, ...], data: np.ndarray, scale: object = None) -> Tensor:
    return Tensor("weights", shape, fmt, data, scale)  # type: ignore[arg-type]


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


@pytest.mark.parametrize("fmt", BLOCKED, ids=lambda fmt: fmt.label)
@pytest.mark.parametrize("columns", [256, 512, 2048, 4096])
def test_blocks_equal_gguf(fmt: Format, columns: int) -> None:
    """Random blocks, one a row and many, decode to gguf's values bit for bit in NumPy and MLX."""
    raw = random_rows(fmt, 24, columns, seed=columns)
    # MXFP4's largest scales overflow to infinity in gguf as well
    with np.errstate(over="ignore"):
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[fmt.label])
        ours = dequantize(tensor(fmt, (24, columns), raw))
    assert expected.shape == (24, columns)
    assert not np.isnan(expected).any()
    np.testing.assert_array_equal(bits(ours), bits(expected))
    in_mlx = blocks_mlx.dequantize_blocks(fmt, mx.array(raw))
    np.testing.assert_array_equal(bits(np.array(in_mlx)), bits(expected))


@pytest.mark.parametrize("fmt", BLOCKED, ids=lambda fmt: fmt.label)
def test_blocks_of_stacked_experts(fmt: Format) -> None:
    """Leading axes are free: a gather of experts decodes to what each decodes to alone."""
    raw = random_rows(fmt, 12, 512, seed=5).reshape(3, 4, -1)
    gathered = mx.array(raw)[mx.array([[2, 0], [1, 1]])]  # (2, 2, 4, row bytes)
    with np.errstate(over="ignore"):
        alone = dequantize(tensor(fmt, (3, 4, 512), raw))
    together = np.array(blocks_mlx.dequantize_blocks(fmt, gathered))
    np.testing.assert_array_equal(bits(together), bits(alone[[[2, 0], [1, 1]]]))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_types_equal_gguf(name: str) -> None:
    """F32, F16 and BF16 equal gguf's values on every 16-bit pattern but NaN; vectors work too."""
    patterns = np.arange(65536, dtype=np.uint16)
    if name == "F32":
        patterns = np.random.default_rng(0).permutation(np.repeat(patterns, 2))
    kind = gguf.GGMLQuantizationType[name]
    expected = gguf.quants.dequantize(patterns.view(np.uint8).reshape(64, -1), kind)
    fmt = Format[name]
    shape = (64, expected.size // 64)
    ours = dequantize(tensor(fmt, shape, patterns.view(np.uint8).reshape(64, -1)))
    number = ~np.isnan(expected)
    assert number.sum() > 60_000
    np.testing.assert_array_equal(bits(ours)[number], bits(expected.reshape(shape))[number])
    vector = dequantize(tensor(fmt, (expected.size,), patterns.view(np.uint8)))
    assert vector.shape == (expected.size,)


@pytest.mark.parametrize("shape", [(128, 128), (256, 512), (200, 320), (64, 1024), (1, 32)])
def test_fp8_equals_its_definition(shape: tuple[int, int]) -> None:
    """FP8 tiles equal torch's e4m3 times torch's e8m0, all codes and scales, ragged edges too."""
    rng = np.random.default_rng(shape[0])
    data = rng.integers(0, 256, shape, np.uint8)
    data[(data & 0x7F) == 0x7F] = 0  # NaN
    scale = rng.integers(0, 255, scale_shape(Format.FP8, shape), np.uint8)
    values = torch.from_numpy(data).view(torch.float8_e4m3fn).float().numpy()
    powers = torch.from_numpy(scale).view(torch.float8_e8m0fnu).float().numpy()
    row, column = np.indices(shape)
    with np.errstate(over="ignore"):
        expected = values * powers[row // 128, column // 128]
        ours = dequantize(tensor(Format.FP8, shape, data, scale))
        part = dequantize(tensor(Format.FP8, shape, data, scale), slice(shape[0] // 3, None))
    np.testing.assert_array_equal(bits(ours), bits(expected))
    np.testing.assert_array_equal(bits(part), bits(expected[shape[0] // 3 :]))


@pytest.mark.parametrize("shape", [(8, 32), (16, 256), (5, 2048)])
def test_fp4_equals_its_definition(shape: tuple[int, int]) -> None:
    """FP4 is the code table times 2^(scale - 127) of its 32 columns, low nibble first."""
    rng = np.random.default_rng(shape[1])
    data = rng.integers(0, 256, (shape[0], shape[1] // 2), np.uint8)
    scale = rng.integers(0, 255, scale_shape(Format.FP4, shape), np.uint8)
    halves = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    table = [*halves, *(-value for value in halves)]
    expected = np.empty(shape, np.float32)
    with np.errstate(over="ignore"):
        for r, c in np.ndindex(shape):
            byte = int(data[r, c // 2])
            code = byte & 15 if c % 2 == 0 else byte >> 4
            expected[r, c] = table[code] * 2.0 ** (int(scale[r, c // 32]) - 127)
        ours = dequantize(tensor(Format.FP4, shape, data, scale))
    np.testing.assert_array_equal(bits(ours), bits(expected))


@pytest.mark.parametrize("fmt", [*BLOCKED, Format.FP4, Format.F16], ids=lambda fmt: fmt.label)
def test_rows_of_a_tensor(fmt: Format) -> None:
    """A slice of rows decodes to the same rows of the whole."""
    if fmt in HALVES:
        raw, scale = random_rows(fmt, 9, 512, seed=3), None
    else:
        rng = np.random.default_rng(3)
        raw = rng.integers(0, 120, (9, fmt.row_bytes(512)), np.uint8)
        scale = rng.integers(100, 130, (9, 16), np.uint8) if fmt is Format.FP4 else None
    whole = tensor(fmt, (9, 512), raw, scale)
    with np.errstate(over="ignore"):
        rows = dequantize(whole, slice(4, 7))
        np.testing.assert_array_equal(bits(rows), bits(dequantize(whole)[4:7]))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers(dtype: type) -> None:
    """Routing tables come out as int32 from either width."""
    table: np.ndarray = np.random.default_rng(0).integers(0, 256, (50, 6)).astype(dtype)
    fmt = Format.I32 if dtype is np.int32 else Format.I64
    read = integers(tensor(fmt, table.shape, table.view(np.uint8)))
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, table)
