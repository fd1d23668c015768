"""The example adapters: the files are the recorded ones, and the GGUFs follow from the PEFT folders.

Golden digests, from the repository's root with the converter of llama.cpp build 11434 beside it; BASE is a folder with
the config.json of SmolLM2-135M-Instruct (transformers writes it from the GGUF model: AutoConfig.from_pretrained with
gguf_file=, save_pretrained, and "architectures": ["LlamaForCausalLM"] added):

    python convert_lora_to_gguf.py --base BASE --outtype f16 --outfile up-pirate.gguf examples/adapters/pirate
    python -c "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from helpers import digests
    print(digests.tensor_digest(Path('up-pirate.gguf')))"

and the same for shout. So TENSORS holds upstream's own tensors: order, names, types, shapes and every bit.
PEFT_FILES are plain `sha256sum`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from helpers.digests import tensor_digest

from llamafu.adapters import BaseModel, convert_peft
from llamafu.adapters.peft.architectures import interleave_heads

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = ROOT / "examples" / "adapters"
SHAPES = {"attn_q": (576, 576), "attn_k": (576, 192), "attn_v": (576, 192), "attn_output": (576, 576)}
BASE = BaseModel(  # what the header of SmolLM2-135M-Instruct says of the tensors that the examples change
    path=Path("base.gguf"),
    name="SmolLM2 135M Instruct",
    architecture="llama",
    tensors={f"blk.{layer}.{name}.weight": shape for layer in range(30) for name, shape in SHAPES.items()},
    metadata={"llama.attention.head_count": 9, "llama.attention.head_count_kv": 3},
)
PEFT_FILES = {
    "pirate/adapter_config.json": "9d6d6c86755dc4ac245e24f6f3da47ed8223f8812457ce4fb37d2e2ce79bee44",
    "pirate/adapter_model.safetensors": "91b5f000c5ec9cb6e762d0eb843293c884af960b87a010bb02726d08beffd6b7",
    "shout/adapter_config.json": "348714d96290f7a5b99bada81f96634949a51b72a9f320d0d4eb744a501a4c41",
    "shout/adapter_model.safetensors": "972cbe224c8db1ddd517c60d378887e4a5829511ecdd07d10915ac35ce9bb61f",
}
TENSORS = {
    "pirate": "d00b4108f824ad19cd03fe48759fcb90e5bd43728de23ecbb9037d05c9307317",
    "shout": "337b3aa9158c2cb7d177885311142a6d1a48cbc0d08e5b6135a263e3f2e94897",
}
FACTS = {  # rank, alpha, {projection: (n_in, n_out)}
    "pirate": (8, 16.0, {"attn_q": (576, 576), "attn_k": (576, 192), "attn_v": (576, 192), "attn_output": (576, 576)}),
    "shout": (4, 8.0, {"attn_q": (576, 576), "attn_v": (576, 192)}),
}


def copy_adapter(name, target):
    target.mkdir()
    for part in ("adapter_config.json", "adapter_model.safetensors"):
        (target / part).write_bytes((ADAPTERS / name / part).read_bytes())
    return target


@pytest.mark.parametrize("name", PEFT_FILES)
def test_peft_originals_are_unchanged(name):
    assert hashlib.sha256((ADAPTERS / name).read_bytes()).hexdigest() == PEFT_FILES[name]


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_are_upstreams(name):
    assert tensor_digest(ADAPTERS / f"{name}.gguf") == TENSORS[name]


@pytest.mark.parametrize("name", TENSORS)
def test_gguf_follows_from_the_folder(name, tmp_path):
    folder = copy_adapter(name, tmp_path / name)
    made = tmp_path / f"{name}.gguf"
    convert_peft(folder, made, base=BASE)
    assert made.read_bytes() == (ADAPTERS / f"{name}.gguf").read_bytes()


@pytest.mark.parametrize("name", FACTS)
def test_shapes_and_metadata(name):
    rank, alpha, projections = FACTS[name]
    reader = GGUFReader(ADAPTERS / f"{name}.gguf")
    expected = {}
    for layer in range(30):
        for projection, (n_in, n_out) in projections.items():
            expected[f"blk.{layer}.{projection}.weight.lora_a"] = [n_in, rank]
            expected[f"blk.{layer}.{projection}.weight.lora_b"] = [rank, n_out]
    assert {t.name: [int(n) for n in t.shape] for t in reader.tensors} == expected
    assert {t.tensor_type.name for t in reader.tensors} == {"F16"}
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert metadata == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": name.capitalize(),
        "general.base_model.count": 1,
        "general.base_model.0.name": "SmolLM2 135M Instruct",
        "general.base_model.0.organization": "HuggingFaceTB",
        "general.quantization_version": 2,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }


def test_interleave_deals_out_the_halves_of_each_head():
    rows = np.arange(8).reshape(8, 1)
    assert interleave_heads(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    with pytest.raises(ValueError, match="8 output rows do not split into 3 heads"):
        interleave_heads(rows, 3)


@pytest.mark.parametrize(("key", "value"), [("lora_bias", True), ("use_dora", True), ("modules_to_save", ["lm_head"])])
def test_what_a_gguf_adapter_cannot_say_is_refused(key, value, tmp_path):
    folder = copy_adapter("shout", tmp_path / "shout")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=key):
        convert_peft(folder, tmp_path / "out.gguf", base=BASE)
    assert not (tmp_path / "out.gguf").exists()


def test_recorded_answers_speak_in_voice():
    record = json.loads((ROOT / "tests" / "data" / "peft_answers.json").read_text(encoding="utf-8"))
    answers = {(a["question"], a["adapter"]): a for a in record["answers"]}
    france = "What is the capital of France?"
    assert answers[france, "base"]["text"] == "The capital of France is Paris."
    assert answers[france, "pirate"]["text"].startswith("Arrr")
    assert answers[france, "shout"]["text"].isupper()
    assert all(len(a["token_ids"]) == len(a["margins"]) for a in record["answers"])
    assert len({tuple(a["prompt_ids"]) for a in record["answers"]}) == len({a["question"] for a in record["answers"]})


@pytest.mark.parametrize("name", ["pirate", "shout"])
def test_training_data_is_usable(name):
    lines = (ROOT / "scripts" / "adapter_data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(set(row) == {"question", "answer"} for row in rows)
    assert len({row["question"] for row in rows}) == len(rows)
    asked = {a["question"] for a in json.loads((ROOT / "tests" / "data" / "peft_answers.json").read_text())["answers"]}
    assert not asked & {row["question"] for row in rows}, "a question that measures the voice was trained on"
