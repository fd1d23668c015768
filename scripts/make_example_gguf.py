"""Make the GGUF form of the example adapters from their PEFT folders.

    python scripts/make_example_gguf.py --base MODEL.gguf [FOLDER ...]

Writes `FOLDER.gguf` beside each folder (default: the two in `examples/adapters`). Of the base model only the
architecture and the head counts are read. The same folder always gives the same bytes. Needs NumPy and gguf, no torch.
Plain LoRA on the seven projections of the llama architecture only; anything else in a folder is an error.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFWriter

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "adapters"
DTYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
PROJECTIONS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PEFT_NAME = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(\w+\.\w+)\.lora_([AB])\.weight")
# Each of these changes what the factors mean, and none can be said in a GGUF adapter: only their "off" value may pass.
PLAIN = {
    "peft_type": "LORA",
    "use_dora": False,
    "use_rslora": False,
    "lora_bias": False,
    "bias": "none",
    "fan_in_fan_out": False,
}
EMPTY = ("alpha_pattern", "rank_pattern", "modules_to_save", "alora_invocation_tokens")


def main() -> None:
    """Convert the folders named on the command line."""
    parser = argparse.ArgumentParser(description="Make the GGUF form of PEFT LoRA folders (llama architecture, F16).")
    parser.add_argument("--base", type=Path, required=True, help="a GGUF model that the adapters are for")
    parser.add_argument("folders", type=Path, nargs="*", default=[EXAMPLES / "pirate", EXAMPLES / "shout"], metavar="FOLDER")
    args = parser.parse_args()
    heads = read_head_counts(args.base)
    for folder in args.folders:
        output = folder.resolve().with_name(f"{folder.resolve().name}.gguf")
        convert(folder.resolve(), output, heads)
        print(f"{output}: {output.stat().st_size} bytes")


def convert(folder: Path, output: Path, heads: tuple[int, int]) -> None:
    """Write the adapter in `folder` to `output`; `heads` = (attention heads, KV heads) of the base model."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    check_config(config)
    writer = GGUFWriter(output, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_name(title(folder.name))
    if base_name := config.get("base_model_name_or_path"):
        add_base_model(writer, base_name)
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    writer.add_quantization_version(2)
    for name, array in lora_tensors(folder / "adapter_model.safetensors", heads):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_head_counts(base: Path) -> tuple[int, int]:
    """Read (attention heads, KV heads) from the metadata of a GGUF llama model."""
    fields = GGUFReader(base).fields
    architecture = fields["general.architecture"].contents()
    if architecture != "llama":
        message = f"{base}: architecture is {architecture!r}, expected 'llama': give a llama model with --base"
        raise ValueError(message)
    heads = int(fields["llama.attention.head_count"].contents())
    kv = fields.get("llama.attention.head_count_kv")
    return heads, heads if kv is None else int(kv.contents())


def check_config(config: dict[str, Any]) -> None:
    """Refuse a PEFT configuration whose meaning a plain GGUF adapter would lose."""
    lost = [f"{key}={config[key]!r}" for key, plain in PLAIN.items() if config.get(key, plain) != plain]
    lost += [f"{key}={config[key]!r}" for key in EMPTY if config.get(key)]
    if lost:
        message = f"adapter_config.json: {', '.join(lost)}: only plain LoRA can be converted here"
        raise ValueError(message)


def add_base_model(writer: GGUFWriter, name_or_path: str) -> None:
    """Name the base model; a hub id `organisation/name` also gives its organisation."""
    organization, _, name = name_or_path.rpartition("/")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, title(name))
    if organization:
        writer.add_base_model_organization(0, organization)


def title(name: str) -> str:
    """Turn a folder or model name into words, with a capital at the start of those that have none."""
    return " ".join(word.capitalize() if word.islower() else word for word in name.split("-"))


def lora_tensors(path: Path, heads: tuple[int, int]) -> list[tuple[str, np.ndarray]]:
    """Return the GGUF tensors of a PEFT file as (name, F16 array), in file order, A before B.

    A keeps PEFT's shape [r, n_in], B its [n_out, r] (GGUF lists dimensions the other way round).
    """
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for name, array in read_safetensors(path).items():
        match = PEFT_NAME.fullmatch(name)
        if match is None or match[2] not in PROJECTIONS:
            message = f"{path}: tensor {name!r} is no LoRA factor of a llama projection ({', '.join(PROJECTIONS)})"
            raise ValueError(message)
        projection = PROJECTIONS[match[2]]
        rows = {"attn_q": heads[0], "attn_k": heads[1]}.get(projection) if match[3] == "B" else None
        half = (array if rows is None else interleave_heads(array, rows)).astype("<f2")
        if not np.isfinite(half).all():
            message = f"{path}: tensor {name!r} has values that are not finite in F16 (largest legal: 65504)"
            raise ValueError(message)
        pairs.setdefault(f"blk.{match[1]}.{projection}.weight", {})[match[3]] = half
    single = [name for name, pair in pairs.items() if len(pair) == 1]
    if single or not pairs:
        message = f"{path}: {', '.join(single) or 'the file'} lacks a lora_A or lora_B tensor"
        raise ValueError(message)
    return [(f"{name}.lora_{side.lower()}", pair[side]) for name, pair in pairs.items() for side in "AB"]


def interleave_heads(b: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a q or k factor for llama.cpp's rotary layout.

    PEFT's base rotates row i of a head with row i + head_size/2; GGUF llama models rotate neighbours, so
    within every head the two halves are dealt out in turn.
    """
    if b.shape[0] % (2 * heads):
        message = f"{b.shape[0]} output rows do not split into {heads} heads of even size: wrong base model"
        raise ValueError(message)
    return b.reshape(heads, 2, -1, b.shape[1]).transpose(0, 2, 1, 3).reshape(b.shape)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read every tensor of a safetensors file, in the order of the data."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            message = f"{path}: tensor {name!r} is {entry['dtype']}, expected one of {', '.join(DTYPES)}"
            raise ValueError(message)
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(raw[start + begin : start + end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


if __name__ == "__main__":
    main()
