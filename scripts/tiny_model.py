"""Builds tiny random GGUF models and LoRA adapters, the same bytes on every machine.

The weights come from PCG64's raw stream, which NumPy promises never to change (its distributions carry no
such promise), and are shaped by IEEE arithmetic alone.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, LlamaFileType, PoolingType, TokenType, quants

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODULES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
BOS, EOS, IM_START, IM_END = range(4)
CONTROL_TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
FIRST_BYTE = len(CONTROL_TOKENS)  # byte b is token FIRST_BYTE + b
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
RANKING = "<|im_start|>judge\n{query}: {document}<|im_end|>\n<|im_start|>assistant\n"
# In the printable alphabet of byte-level BPE (see `byte_text`; Ġ is a space), in order of rank. Of the last three, which
# begin characters of several bytes, only the first is complete: é is one token, a dash or an emoji is two or three.
MERGES = tuple(
    (
        "Ġ t,h e,Ġt he,i n,Ġ a,a n,n d,Ġa nd,e r,r e,o n,e n,o r,s t,e d,i s,i t,e s,o u,l l,a s,l e,v e,a r,in g,"
        "Ġ s,Ġ w,Ġw as,Ġ o,Ġo f,Ġ b,Ġ c,Ġ f,Ġt o,Ġ in,Ġ y,Ġy ou,u s,l o,ll o,he llo,w or,l d,wor ld,"
        "1 2,12 3,0 0,. .,.. .,! !,Ġ =,( ),Ġ Ġ,ĠĠ ĠĠ,Ã ©,â Ģ,ð Ł"
    ).split(",")
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model; `n_head * head_dim` is `n_embd`."""

    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    merges: tuple[str, ...]

    def linear(self, module: str) -> tuple[int, int]:
        """Rows (output features) and columns (input features) of one projection."""
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        return {
            "attn_q": (q, self.n_embd),
            "attn_k": (kv, self.n_embd),
            "attn_v": (kv, self.n_embd),
            "attn_output": (self.n_embd, q),
            "ffn_gate": (self.n_ff, self.n_embd),
            "ffn_up": (self.n_ff, self.n_embd),
            "ffn_down": (self.n_embd, self.n_ff),
        }[module]

    @property
    def n_vocab(self) -> int:
        """Tokens: the controls, all 256 bytes, the merges."""
        return FIRST_BYTE + 256 + len(self.merges)


TINY = Shape(n_embd=64, n_layer=2, n_head=4, n_head_kv=2, head_dim=16, n_ff=96, merges=MERGES)
PROOF = Shape(n_embd=16, n_layer=1, n_head=2, n_head_kv=1, head_dim=8, n_ff=32, merges=MERGES[:4])


class Weights:
    """A stream of pseudo-random float32 arrays."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def uniform(self, shape: tuple[int, ...], std: float) -> np.ndarray:
        """Values spread evenly around zero with standard deviation `std`."""
        raw = self._bits.random_raw(math.prod(shape)) >> np.uint64(40)
        centred = raw.astype(np.float32) * np.float32(2**-23) - np.float32(1)
        return (centred * np.float32(std * math.sqrt(3))).reshape(shape)

    def linear(self, shape: tuple[int, int], gain: float = 1.0) -> np.ndarray:
        """Make a matrix that turns inputs of unit variance into outputs of standard deviation `gain`."""
        return self.uniform(shape, gain / math.sqrt(shape[1]))

    def norm(self, size: int) -> np.ndarray:
        """Gains around one."""
        return np.float32(1) + self.uniform((size,), 0.2)


def byte_text(data: bytes) -> str:
    """Write `data` in the printable alphabet of byte-level BPE, where a space is written U+0120."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return "".join(alphabet[byte] for byte in data)


def add_vocabulary(
    writer: GGUFWriter, merges: tuple[str, ...], pre: str = "gpt-2", *, more_controls: tuple[str, ...] = ()
) -> None:
    """Write a byte-level BPE tokenizer: the controls, all 256 bytes, the merges, and `more_controls`.

    `pre` names its pre-tokenizer.
    """
    texts = [byte_text(bytes([byte])) for byte in range(256)] + [merge.replace(" ", "") for merge in merges]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*CONTROL_TOKENS, *texts, *more_controls])
    control, normal = TokenType.CONTROL, TokenType.NORMAL
    writer.add_token_types([control] * len(CONTROL_TOKENS) + [normal] * len(texts) + [control] * len(more_controls))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(value=True)
    writer.add_add_space_prefix(value=False)
    writer.add_chat_template(CHATML)


def _model_tensors(shape: Shape, weights: Weights, *, tied: bool, arch: str) -> dict[str, np.ndarray]:
    tensors = {"token_embd.weight": weights.linear((shape.n_vocab, shape.n_embd), 2.0)}
    for layer in range(shape.n_layer):
        prefix = f"blk.{layer}."
        tensors[prefix + "attn_norm.weight"] = weights.norm(shape.n_embd)
        tensors[prefix + "ffn_norm.weight"] = weights.norm(shape.n_embd)
        for module in MODULES:
            tensors[f"{prefix}{module}.weight"] = weights.linear(shape.linear(module))
        for module in MODULES[:3] if arch in {"qwen2", "qwen2vl"} else ():
            tensors[f"{prefix}{module}.bias"] = weights.uniform(shape.linear(module)[:1], 0.2)
        for module in MODULES[:2] if arch == "qwen3" else ():
            tensors[f"{prefix}{module}_norm.weight"] = weights.norm(shape.head_dim)
    tensors["output_norm.weight"] = weights.norm(shape.n_embd)
    if not tied:
        tensors["output.weight"] = weights.linear((shape.n_vocab, shape.n_embd), 2.0)
    return tensors


def write_model(
    path: Path,
    shape: Shape,
    *,
    seed: int,
    name: str,
    arch: str = "llama",
    tied: bool = False,
    q4_0: bool = False,
    pooling: PoolingType | None = None,
    causal: bool = True,
    pre: str = "gpt-2",
    vocabulary: Callable[[GGUFWriter, int], None] | None = None,
) -> None:
    """Write a model of `shape`; the same seed gives the same weights whatever `q4_0` says.

    `arch` is "llama", "qwen2" or "qwen2vl" (the same tensors plus biases on q, k and v) or "qwen3" (plus norms of q and
    k). With `tied` there is no `output.weight`. With `q4_0` every matrix is quantised. `pooling` is for a model that
    embeds, or ranks, with a head of two outputs and a template for pairs; without `causal` its tokens see those behind
    them too. `pre` names another pre-tokenizer, `vocabulary` writes another kind of tokenizer than byte-level BPE.
    """
    writer = GGUFWriter(path, arch)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_context_length(512)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.n_vocab)
    if not causal:
        writer.add_causal_attention(value=False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0 if q4_0 else LlamaFileType.ALL_F32)
    if vocabulary is None:
        add_vocabulary(writer, shape.merges, pre)
    else:
        vocabulary(writer, shape.n_vocab)
    weights = Weights(seed)
    tensors = _model_tensors(shape, weights, tied=tied, arch=arch)
    if pooling == PoolingType.RANK:
        writer.add_classifier_output_labels(["yes", "no"])
        writer.add_string("tokenizer.chat_template.rerank", RANKING)
        tensors["cls.output.weight"] = weights.linear((2, shape.n_embd), 2.0)
    for tensor_name, values in tensors.items():
        if q4_0 and values.ndim > 1:
            writer.add_tensor(
                tensor_name, quants.quantize(values, GGMLQuantizationType.Q4_0), raw_dtype=GGMLQuantizationType.Q4_0
            )
        else:
            writer.add_tensor(tensor_name, values)
    finish(writer)


def write_adapter(
    path: Path,
    shape: Shape,
    *,
    seed: int,
    rank: int,
    alpha: float,
    modules: tuple[str, ...] = MODULES,
    strength: float = 0.5,
    f16: bool = False,
    invocation_tokens: tuple[int, ...] = (),
    arch: str = "llama",
) -> None:
    """Write a LoRA adapter for the `arch` model of `shape`.

    At scale 1 each of `modules` moves its outputs by about `strength` times the standard deviation of its inputs,
    whatever `rank` and `alpha` are. `invocation_tokens` make it an aLoRA adapter.
    """
    weights = Weights(seed)
    writer = GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_name(path.name.partition(".")[0])
    writer.add_float32("adapter.lora.alpha", alpha)
    if invocation_tokens:
        key = "adapter.alora.invocation_tokens"  # libllama wants unsigned numbers, add_array would write signed ones
        writer.add_key_value(key, list(invocation_tokens), GGUFValueType.ARRAY, GGUFValueType.UINT32)
    dtype = np.float16 if f16 else np.float32
    for layer in range(shape.n_layer):
        for module in modules:
            rows, columns = shape.linear(module)
            a = weights.linear((rank, columns))
            b = weights.uniform((rows, rank), strength * math.sqrt(rank) / alpha)
            writer.add_tensor(f"blk.{layer}.{module}.weight.lora_a", a.astype(dtype))
            writer.add_tensor(f"blk.{layer}.{module}.weight.lora_b", b.astype(dtype))
    finish(writer)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def finish(writer: GGUFWriter) -> None:
    """Write everything that was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
