"""From a model's files to a network on a device: where backends are chosen.

The only place that knows which operations and which weights go together.  Called by the engine
and by `ds4_daemon.logits`.
"""

import os
from pathlib import Path

from ds4_daemon.errors import ConfigError, ModelFileError
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.files import ModelFiles, open_model
from ds4_daemon.model.network import Network
from ds4_daemon.model.quant import integers

DEVICES = ("auto", "cpu", "gpu", "mlx-cpu")
DTYPES = ("auto", "f32", "bf16")


def load_network(
    source: Path | ModelFiles,
    *,
    device: str = "auto",
    dtype: str = "auto",
    rounding: bool = True,
    dequantized_budget_bytes: int = 1_000_000_000,
) -> Network:
    """Load a model folder or GGUF file, or files already opened.

    `device`: "cpu" computes with NumPy, "gpu" with MLX, "mlx-cpu" with MLX on the CPU, where it
    is slow and serves to check the GPU's path; "auto" is the GPU if MLX has one.  `dtype` is the
    activation type, "f32" on a CPU and "bf16" on a GPU unless said otherwise.  `rounding`: FP8
    and FP4 rounding of cached values, as the official inference does.
    `dequantized_budget_bytes`: what the CPU may hold of weights in float32.

    Raises ModelFileError, and ConfigError for a device or type that cannot be had.
    """
    files = source if isinstance(source, ModelFiles) else open_model(source)
    device = check(files, device=device, dtype=dtype, rounding=rounding)
    if device == "cpu":
        return _on_numpy(files, rounding, dequantized_budget_bytes)
    return _on_mlx(files, device, dtype, rounding)


def check(files: ModelFiles, *, device: str, dtype: str, rounding: bool) -> str:
    """Whether these files can be loaded like this, without loading them; the device in the end.

    Raises as `load_network` does, which asks this first.
    """
    if device not in DEVICES:
        raise ConfigError("UNKNOWN_DEVICE", f"no device {device!r}", f"one of {', '.join(DEVICES)}")
    if dtype not in DTYPES:
        raise ConfigError("UNKNOWN_DTYPE", f"no type {dtype!r}", f"one of {', '.join(DTYPES)}")
    if device == "auto":
        device = "gpu" if _gpu_available() else "cpu"
    elif device == "gpu" and not _gpu_available():
        raise ConfigError("NO_GPU", "MLX finds no GPU on this machine", "use --device cpu")
    if device == "cpu" and dtype == "bf16":
        raise ConfigError("NO_BF16_ON_CPU", "a CPU computes in float32", "use --dtype f32")
    _check_hash_tables(files)
    if rounding:
        _check_rounding(files.config)
    return device


def _check_hash_tables(files: ModelFiles) -> None:
    """The only numbers of a model that are used as indices."""
    for layer in range(files.config.num_hash_layers):
        name = f"layers.{layer}.ffn.gate.tid2eid"
        experts = integers(files.tensor(name))
        if experts.min() < 0 or experts.max() >= files.config.n_routed_experts:
            raise ModelFileError(
                "MODEL_EXPERT_OUT_OF_RANGE",
                f"{name} names an expert that the model does not have",
                "the file is damaged; fetch it again",
            )


def _check_rounding(config: ModelConfig) -> None:
    """FP8 comes in blocks of 64 channels, FP4 of 32 after a transform of a power of two."""
    plain, index = config.head_dim - config.qk_rope_head_dim, config.index_head_dim
    if plain % 64 or index % 32 or index & (index - 1):
        raise ConfigError(
            "ROUNDING_UNFIT",
            f"cached rows of {plain} and {index} channels do not divide into FP8 and FP4 blocks",
            "turn rounding off for this model",
        )


def _on_numpy(files: ModelFiles, rounding: bool, budget_bytes: int) -> Network:
    from ds4_daemon.kernels.numpy_ops import NumpyOps
    from ds4_daemon.model.weights_numpy import NumpyWeights

    ops = NumpyOps()
    weights = NumpyWeights(files, ops, budget_bytes)
    return Network(files.config, weights, ops, device="cpu", dtype="f32", rounding=rounding)


def _on_mlx(files: ModelFiles, device: str, dtype: str, rounding: bool) -> Network:
    # What is computed in float32 is meant so (routing, hyper-connections, compressors): on CUDA
    # MLX would multiply with 10 bits of mantissa. Read once, at the first product.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    import mlx.core as mx

    from ds4_daemon.kernels.mlx_ops import MlxOps
    from ds4_daemon.model.weights_mlx import MlxWeights

    mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)
    if dtype == "auto":
        dtype = "bf16" if device == "gpu" else "f32"
    ops = MlxOps(mx.bfloat16 if dtype == "bf16" else mx.float32)
    weights = MlxWeights(files, ops)
    network = Network(files.config, weights, ops, device=device, dtype=dtype, rounding=rounding)
    mx.clear_cache()  # buffers that loading used and running will not
    return network


def _gpu_available() -> bool:
    import mlx.core as mx

    return bool(mx.is_available(mx.gpu))
