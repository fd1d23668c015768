"""Models to bake into, and how to measure what came out."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter, quants

from helpers.doc_pages import ROOT
from llamafu import Llamafu
from llamafu._native.ggml_codec import GgmlCodec
from llamafu._native.library import open_library
from llamafu.errors import (
    LibraryNotFoundError,
)
from llamafu.libraries import discovery

PIRATE = ROOT / "examples" / "adapters" / "pirate.gguf"


@pytest.fixture(scope="module")
def ggml():
    proven = discovery.find()
    return GgmlCodec(open_library(proven.path, proven.family))


@pytest.fixture
def no_library(monkeypatch):
    """A machine without libllama."""

    def nothing(library=None):
        message = "none here"
        raise LibraryNotFoundError(message)

    monkeypatch.delenv("LLAMAFU_LIB", raising=False)
    monkeypatch.setattr("llamafu._native.library._loaded", None)
    monkeypatch.setattr("llamafu.libraries.discovery.find", nothing)


def data(path):
    """Every tensor's bytes, type and shape, with gguf's reader."""
    return {t.name: (t.data.tobytes(), t.tensor_type, t.shape.tolist()) for t in GGUFReader(path).tensors}


def write_model(path, tensors, *, kinds=None, architecture="llama", extra=()):
    """Write a model of (out, in) or (experts, out, in) tensors; `kinds` quantises some of them."""
    writer = GGUFWriter(path, architecture)
    writer.add_name("made")
    for key, value in extra:
        writer.add_uint16(key, value)
    for name, array in tensors.items():
        kind = (kinds or {}).get(name, Kind.F32)
        writer.add_tensor(name, array if kind is Kind.F32 else quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(path, adapters):
    with Llamafu(path, n_ctx=128, type_k="f32", type_v="f32", flash_attn="off", n_threads=1, scale_range=(-9, 9)) as llm:
        native = {llm._adapters.native(llm.load_lora_adapter(path)): scale for path, scale in adapters.items()}
        context = llm._session.instance.context
        context.set_adapters(native)
        tokens = llm.tokenize("Hello, the world was in you and all of it.")
        context.decode(tokens, 0, all_logits=True)
        found = np.array([context.logits(i) for i in range(len(tokens))], np.float64)
        context.set_adapters({})
    return found


def divergence(one, other):
    """Largest KL divergence of the next-token distributions over all positions."""
    one, other = (x - x.max(-1, keepdims=True) for x in (one, other))
    one, other = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (one, other))
    return float((np.exp(one) * (one - other)).sum(-1).max())


TEXT = (
    "The sea covers most of the planet. Ships have crossed it for thousands of years, carrying grain, cloth, tools and stories "
    "from one coast to another. In the early days sailors kept close to the land and slept ashore at night; later they learned "
    "to read the stars, to trust the compass, and to measure the height of the sun at noon. A voyage that once took a year now "
    "takes two weeks, and yet the water is the same: it rises with the moon, it freezes at the poles, and in the middle of the "
    "ocean there is still nothing to see but the horizon. People who live by the shore know its moods. They watch the clouds "
    "in the morning, they listen to the gulls, and they bring the boats in before the wind turns. Children collect shells and "
    "glass on the beach, and old men mend nets in front of their houses."
)
