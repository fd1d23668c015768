"""Digests of tensors."""

from __future__ import annotations

import hashlib

from gguf import GGUFReader


def tensor_digest(path):
    digest = hashlib.sha256()
    for tensor in GGUFReader(path).tensors:
        shape = [int(n) for n in tensor.shape]
        digest.update(f"{tensor.name} {tensor.tensor_type.name} {shape}\n".encode())
        digest.update(tensor.data.tobytes())
    return digest.hexdigest()
