"""The example model with its matrices of another type, by libllama's own quantiser: seconds faster than NumPy's."""

import numpy as np
from gguf import GGMLQuantizationType as Kind

from llamafu.adapters.gguf.shard import read_shards
from llamafu.examples.model import example_model


def requantised(kind, path, codec):
    """Write the example model anew with its matrices of one type (token embeddings as Q8_0, as is usual)."""
    source = example_model()
    (shard,) = read_shards(source)
    content, kinds, sizes, parts = source.read_bytes(), {}, {}, []
    for name, (entry, length) in shard.regions().items():
        part = content[entry.offset : entry.offset + length]
        if entry.type != Kind.F32:
            rows = np.empty((entry.shape[1], entry.shape[0]), np.float32)
            codec.decode(part[: entry.nbytes], entry.type, rows)
            kinds[name] = Kind.Q8_0 if name == "token_embd.weight" else kind
            part = bytes(codec.encode(rows, kinds[name]))
            part += bytes(-len(part) % 32)
        sizes[name] = len(part)
        parts.append(part)
    path.write_bytes(shard.header({}, kinds, sizes) + b"".join(parts))
    return path
