"""What Status tells of the loaded model: counted once from the headers of its files.

Called by `main` before the model is loaded; reads no weights.
"""

import math
from collections import Counter
from pathlib import Path

from ds4.v1 import admin_pb2 as pb

from ds4_daemon.model.files import ModelFiles


def model_status(name: str, path: Path, files: ModelFiles, context_tokens: int) -> pb.ModelStatus:
    """All that the files say; `admin` adds what is known once it is loaded."""
    tensors: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    parameters = 0
    for tensor_name in files.names():
        tensor = files.tensor(tensor_name)
        tensors[tensor.format.label] += 1
        sizes[tensor.format.label] += tensor.nbytes
        parameters += math.prod(tensor.shape)
    return pb.ModelStatus(
        name=name,
        path=str(path),
        file_format="safetensors" if path.is_dir() else "gguf",
        file_bytes=files.file_bytes,
        parameters=parameters,
        context_tokens=context_tokens,
        layers=files.config.num_hidden_layers,
        vocabulary=files.config.vocab_size,
        quantization=[
            pb.QuantizationShare(format=label, tensors=tensors[label], bytes=size)
            for label, size in sizes.most_common()
        ],
    )
