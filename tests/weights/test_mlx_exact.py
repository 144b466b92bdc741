"""The repackings for MLX's own quantized products lose nothing."""

import mlx.core as mx
import numpy as np
import pytest
from ds4_daemon.model.quant import dequantize
from ds4_daemon.model.quant.mlx_exact import GROUP, has_exact_form, pack
from ds4_daemon.model.tensor import Format, Tensor, scale_shape

ROWS, COLUMNS = 256, 1024
SIZES = {
    Format.Q8_0: 34 / 32 + 6 / 32,
    Format.MXFP4: 17 / 32,
    Format.FP4: 17 / 32,
    Format.FP8: 33 / 32,
}


def random_tensor(fmt: Format, seed: int = 0) -> Tensor:
    """Every code, scales from 2^-126 to 2^120, so that products stay finite."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (ROWS, fmt.row_bytes(COLUMNS)), np.uint8)
    scale = None
    match fmt:
        case Format.Q8_0:
            halves = rng.normal(0, 0.1, (ROWS, COLUMNS // 32)).astype(np.float16)
            halves[0, :4] = [0, 2.0**-24, 65504, -65504]
            data.reshape(ROWS, -1, 34)[..., :2] = halves[..., None].view(np.uint8)
        case Format.MXFP4:
            data.reshape(ROWS, -1, 17)[..., 0] = rng.integers(1, 248, (ROWS, COLUMNS // 32))
        case _:
            scale = rng.integers(1, 240, scale_shape(fmt, (ROWS, COLUMNS)), np.uint8)
    if fmt is Format.FP8:
        data[(data & 0x7F) == 0x7F] = 0x7E
    return Tensor("weights", (ROWS, COLUMNS), fmt, data, scale)


@pytest.mark.parametrize("fmt", SIZES, ids=lambda fmt: fmt.label)
def test_packed_form_is_exact(fmt: Format) -> None:
    """MLX's dequantize of the packed form gives our values, and the form takes no more bytes."""
    tensor = random_tensor(fmt)
    assert has_exact_form(tensor)
    packed = pack(tensor)
    # equal as numbers: MLX gives 0 where ggml gives -0, and the other way round
    np.testing.assert_array_equal(np.array(packed.dequantize()), dequantize(tensor))
    assert packed.nbytes == SIZES[fmt] * ROWS * COLUMNS


@pytest.mark.parametrize("fmt", SIZES, ids=lambda fmt: fmt.label)
def test_quantized_product_takes_the_packed_form(fmt: Format) -> None:
    """mx.quantized_matmul with the packed form is a product with the dequantized matrix."""
    tensor = random_tensor(fmt, seed=1)
    if tensor.scale is not None:
        tensor = Tensor("w", tensor.shape, fmt, tensor.data, tensor.scale % 8 + np.uint8(120))
    elif fmt is Format.MXFP4:
        tensor.data.reshape(ROWS, -1, 17)[..., 0] = 124
    else:
        tensor = Tensor("w", (200, COLUMNS), fmt, tensor.data[1:201])  # row 0 has the extremes
    packed = pack(tensor)
    x = np.random.default_rng(2).standard_normal((3, COLUMNS)).astype(np.float32)
    y = mx.quantized_matmul(
        mx.array(x),
        packed.weight,
        packed.scales,
        packed.biases,
        transpose=True,
        group_size=GROUP,
        bits=packed.bits,
        mode=packed.mode,
    )
    expected = x.astype(np.float64) @ dequantize(tensor).T.astype(np.float64)
    np.testing.assert_allclose(np.array(y), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_formats_without_an_exact_form() -> None:
    """2-bit and plain formats, and FP8 rows that split a group, are refused."""
    for fmt in (Format.IQ2_XXS, Format.Q2_K, Format.Q4_K, Format.F16):
        data = np.zeros((2, fmt.row_bytes(256)), np.uint8)
        assert not has_exact_form(Tensor("w", (2, 256), fmt, data))
        with pytest.raises(ValueError, match="no exact form"):
            pack(Tensor("w", (2, 256), fmt, data))
    ragged = Tensor(
        "w", (4, 48), Format.FP8, np.zeros((4, 48), np.uint8), np.ones((1, 1), np.uint8)
    )
    assert not has_exact_form(ragged)
