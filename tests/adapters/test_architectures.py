"""Every architecture of the converter's table: names, layout and sizes, without torch.

GOLDENS holds `tensor_digest` of what the converter of llama.cpp build 11434 makes of `write_model_folder(kind, ...)`:

    python convert_lora_to_gguf.py --base BASE --outtype f16 --outfile OUT.gguf FOLDER

BASE is a folder with the config.json of `scripts/tiny_hf.py`'s model of that kind. `make test-peers` runs that command
and compares with the same digests. What the changes are is derived here once more, by index.
"""

import numpy as np
import pytest
from helpers.model_folders import (
    EXPERTS,
    GOLDENS,
    HEADS,
    HIDDEN,
    KV,
    KV_HEADS,
    MODELS,
    RANK,
    VOCABULARY,
    WIDE,
    arrays_of,
    base_of,
    changes,
    modules_of,
    tensor_digest,
    write_model_folder,
)
from helpers.peft_folders import reordered, write_folder
from tiny_model import Weights

from llamafu.adapters import convert_peft, read_adapter
from llamafu.adapters.peft.architectures import ARCHITECTURES
from llamafu.errors import InvalidAdapterFileError, LoraIncompatibleError


def expected(kind, arrays, strength):
    """Return dW of each base tensor by PEFT's formula, B A times the strength, in the order of GGUF's rows."""
    found = {}
    for module, (target, expert, n_in, n_out) in modules_of(kind).items():
        if f"base_model.model.{module}.lora_A.weight" not in arrays:
            continue
        a, b = (arrays[f"base_model.model.{module}.lora_{side}.weight"].astype("f8") for side in "AB")
        delta = strength(module) * b @ a
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(target.split(".")[-2])
        if heads and MODELS[kind][0] in ("llama", "granite"):
            delta = reordered(delta, heads)
        if expert is None:
            found[target] = delta
        else:
            found.setdefault(target, np.zeros((EXPERTS, n_out, n_in)))[expert] = delta
    return found


def check(kind, path, arrays, strength):
    found, wanted = changes(path), expected(kind, arrays, strength)
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        np.testing.assert_allclose(found[name], delta, rtol=0, atol=1e-5 * np.abs(delta).max(), err_msg=name)


def test_every_architecture_is_here():
    assert [*dict.fromkeys(architecture for architecture, _ in MODELS.values())] == [*ARCHITECTURES]


@pytest.mark.parametrize("kind", MODELS)
def test_tensors_are_upstreams(kind, tmp_path):
    convert_peft(write_model_folder(kind, tmp_path / "folder"), tmp_path / "out.gguf", base=base_of(kind))
    assert tensor_digest(tmp_path / "out.gguf") == GOLDENS[kind]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("rslora", [False, True])
def test_changes_are_pefts(kind, rslora, tmp_path):
    """Ranks and alphas differ between modules, and between experts of one stack."""

    def rank(module):
        return 2 if "o_proj" in module or ".experts.1." in module else RANK

    def alpha(module):
        return 3 if module.endswith(".v_proj") or ".experts.2." in module else 8

    arrays = arrays_of(kind, rank)
    patterns = {
        "rank_pattern": {"o_proj": 2, r".*\.experts\.1\..*": 2},
        "alpha_pattern": {"v_proj": 3, r".*\.experts\.2\..*": 3},
    }
    folder = write_folder(tmp_path / "folder", arrays, use_rslora=rslora, **patterns)
    convert_peft(folder, tmp_path / "out.gguf", base=base_of(kind), dtype="f32")
    check(kind, tmp_path / "out.gguf", arrays, lambda module: alpha(module) / rank(module) ** (0.5 if rslora else 1))


# -- experts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_that_were_not_trained_stay_as_they_are(kind, tmp_path):
    arrays = {name: array for name, array in arrays_of(kind).items() if ".experts." not in name or ".experts.2." in name}
    convert_peft(write_folder(tmp_path / "folder", arrays), tmp_path / "out.gguf", base=base_of(kind), dtype="f32")
    check(kind, tmp_path / "out.gguf", arrays, lambda _: 2.0)
    stack = changes(tmp_path / "out.gguf")["blk.0.ffn_up_exps.weight"]
    assert [bool(expert.any()) for expert in stack] == [False, False, True, False]


def parameter_arrays(parameters, rank=RANK):
    """Random factors as PEFT saves them for parameters that hold all experts: the first one lies deepest."""
    stream, arrays = Weights(5), {}
    for layer in range(2):
        for depth, (n_in, n_out) in enumerate(reversed(parameters)):
            module = f"base_model.model.model.layers.{layer}.mlp.experts{'.base_layer' * depth}"
            arrays[f"{module}.lora_A.weight"] = stream.uniform((EXPERTS * rank, n_in), 1.0)
            arrays[f"{module}.lora_B.weight"] = stream.uniform((n_out, EXPERTS * rank), 1.0)
    return arrays


def parameter_change(arrays, module, strength, rank=RANK):
    """Return dW of one parameter, (experts, out, in): A's rows are expert by expert, B's columns rank by rank."""
    a, b = (arrays[f"base_model.model.{module}.lora_{side}.weight"].astype("f8") for side in "AB")
    return np.array(
        [strength * sum(np.outer(b[:, r * EXPERTS + e], a[e * rank + r]) for r in range(rank)) for e in range(EXPERTS)]
    )


GATE_UP, DOWN = (HIDDEN, 2 * WIDE), (WIDE, HIDDEN)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("parameters", [("gate_up_proj", "down_proj"), ("gate_up_proj",), ("down_proj",)])
def test_parameters_that_hold_all_experts(kind, parameters, tmp_path):
    """What PEFT trains on transformers 5, where a layer's experts are two parameters; at their own alpha."""
    arrays = parameter_arrays([{"gate_up_proj": GATE_UP, "down_proj": DOWN}[name] for name in parameters])
    config = {"target_parameters": [f"mlp.experts.{name}" for name in parameters], "alpha_pattern": {r".*\.down_proj": 6}}
    folder = write_folder(tmp_path / "folder", arrays, **config)
    convert_peft(folder, tmp_path / "out.gguf", base=base_of(kind), dtype="f32")
    found = changes(tmp_path / "out.gguf")
    assert len(found) == 2 * (2 * ("gate_up_proj" in parameters) + ("down_proj" in parameters))
    for layer in range(2):
        stem, inner = f"model.layers.{layer}.mlp.experts", ".base_layer" * (len(parameters) - 1)
        if "gate_up_proj" in parameters:
            whole = parameter_change(arrays, stem + inner, 2.0)
            for name, part in (("ffn_gate_exps", whole[:, :WIDE]), ("ffn_up_exps", whole[:, WIDE:])):
                np.testing.assert_allclose(found[f"blk.{layer}.{name}.weight"], part, rtol=0, atol=1e-5 * np.abs(part).max())
        if "down_proj" in parameters:
            whole = parameter_change(arrays, stem, 1.5)
            np.testing.assert_allclose(found[f"blk.{layer}.ffn_down_exps.weight"], whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"mlp.experts.4.up_proj.lora_A.weight": (RANK, HIDDEN), "mlp.experts.4.up_proj.lora_B.weight": (WIDE, RANK)},
            "no expert 4",
        ),
        ({"mlp.experts.1.up_proj.lora_B.weight": (WIDE + 1, RANK)}, "ffn_up_exps.*its experts are of different sizes"),
        ({"mlp.experts.1.up_proj.lora_B.weight": (WIDE, 3)}, r"experts\.1\.up_proj.*must be \[4, in\]"),
        (
            {"mlp.experts.lora_A.weight": (RANK, HIDDEN), "mlp.experts.lora_B.weight": (WIDE, RANK)},
            "experts.*target_parameters in adapter_config.json does not name the parameter",
        ),
    ],
)
def test_experts_refused_by_name(changed, words, tmp_path):
    arrays = arrays_of("qwen3_moe") | {
        f"base_model.model.model.layers.0.{name}": np.ones(shape, "f4") for name, shape in changed.items()
    }
    folder = write_folder(tmp_path / "folder", arrays)
    with pytest.raises(InvalidAdapterFileError, match=words):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of("qwen3_moe"))
    assert not (tmp_path / "out.gguf").exists()


def test_parameters_refused_by_name(tmp_path):
    """Sizes that are no experts', a parameter that is not targeted, a base without experts."""
    sound = {"target_parameters": ["gate_up_proj"]}
    cases = [
        (parameter_arrays([(HIDDEN, 2 * WIDE + 1)]), sound, "qwen3_moe", r"193 rows, which do not split"),
        (parameter_arrays([GATE_UP], rank=3), sound, "qwen3_moe", r"must be \[16, in\]"),
        (parameter_arrays([GATE_UP, DOWN]), sound, "qwen3_moe", "experts.base_layer.*does not name the parameter"),
        (parameter_arrays([GATE_UP]), {"target_parameters": ["router"]}, "qwen3_moe", "does not name the parameter"),
        (parameter_arrays([GATE_UP]), sound, "qwen3", "'qwen3' models have no such linear layer"),
    ]
    for number, (arrays, config, kind, words) in enumerate(cases):
        folder = write_folder(tmp_path / str(number), arrays, **config)
        with pytest.raises(InvalidAdapterFileError, match=words):
            convert_peft(folder, tmp_path / "out.gguf", base=base_of(kind))
    base = base_of("mixtral")
    folder = write_model_folder("mixtral", tmp_path / "mixtral")
    for count in (None, 0, 1 << 31):
        base.metadata["llama.expert_count"] = count
        with pytest.raises(InvalidAdapterFileError, match=rf"belongs to an expert.*llama\.expert_count is {count}"):
            convert_peft(folder, tmp_path / "out.gguf", base=base)
    base.metadata["llama.expert_count"] = EXPERTS + 1
    with pytest.raises(LoraIncompatibleError, match="the adapter has 5 experts, the base model 4 experts"):
        convert_peft(folder, tmp_path / "out.gguf", base=base)


def test_a_router_adapted_as_a_parameter_has_its_own_name_in_patterns(tmp_path):
    """PEFT matches patterns with `mlp.gate.weight` then, so one for `gate` is not meant."""
    arrays = {name: array for name, array in arrays_of("qwen3_moe").items() if "mlp.gate." in name}
    for number, (pattern, strength) in enumerate((("mlp.gate", 2.0), ("gate.weight", 3.0))):
        config = {"target_parameters": ["gate.weight"], "alpha_pattern": {pattern: 12}}
        folder = write_folder(tmp_path / str(number), arrays, **config)
        convert_peft(folder, tmp_path / "out.gguf", base=base_of("qwen3_moe"), dtype="f32")
        check("qwen3_moe", tmp_path / "out.gguf", arrays, lambda _, strength=strength: strength)


def test_what_is_adapted_twice_is_refused(tmp_path):
    """Experts in both forms, in either order; one layer under two names."""
    single = {name: array for name, array in arrays_of("qwen3_moe").items() if ".experts.1.up_proj." in name}
    whole = parameter_arrays([GATE_UP])
    q = {name: array for name, array in arrays_of("qwen3_moe").items() if "layers.0.self_attn.q_proj." in name}
    again = {name.replace("model.layers", "model.language_model.layers"): array for name, array in q.items()}
    for number, arrays in enumerate((single | whole, whole | single, q | again)):
        folder = write_folder(tmp_path / str(number), arrays, target_parameters=["gate_up_proj"])
        with pytest.raises(InvalidAdapterFileError, match="which another module is already"):
            convert_peft(folder, tmp_path / "out.gguf", base=base_of("qwen3_moe"))


# -- q, k and v in one tensor -------------------------------------------------------------------------------------


def fused_base(kind):
    base = base_of(kind)
    for layer in range(2):
        rows = sum(base.tensors.pop(f"blk.{layer}.attn_{part}.weight")[1] for part in "qkv")
        base.tensors[f"blk.{layer}.attn_qkv.weight"] = (HIDDEN, rows)
    base.metadata[f"{base.architecture}.embedding_length"] = HIDDEN
    return base


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("adapted", ["qkv", "qv", "k"])
def test_fused_bases(kind, adapted, tmp_path):
    """The three changes one above the other, those that were not trained zero, at ranks and alphas of their own."""

    def rank(module):
        return 2 if module.endswith("v_proj") else RANK

    def alpha(module):
        return 3 if module.endswith("q_proj") else 8

    arrays = {
        name: array
        for name, array in arrays_of(kind, rank).items()
        if not any(f".{part}_proj." in name for part in set("qkv") - set(adapted))
    }
    folder = write_folder(tmp_path / "folder", arrays, rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 3})
    convert_peft(folder, tmp_path / "out.gguf", base=fused_base(kind), dtype="f32")
    found, parts = changes(tmp_path / "out.gguf"), expected(kind, arrays, lambda module: alpha(module) / rank(module))
    assert not any("attn_q.weight" in name for name in found)
    for layer in range(2):
        rows = {"q": HIDDEN, "k": KV, "v": KV}
        whole = np.vstack([parts.get(f"blk.{layer}.attn_{part}.weight", np.zeros((rows[part], HIDDEN))) for part in "qkv"])
        delta = found[f"blk.{layer}.attn_qkv.weight"]
        np.testing.assert_allclose(delta, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_fused_bases_refused_by_name(tmp_path):
    base = fused_base("qwen2")
    part = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((RANK, HIDDEN), "f4"),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": np.ones((HIDDEN, RANK), "f4"),
    }
    phi3 = base_of("phi3")
    phi3.metadata["phi3.embedding_length"] = HIDDEN
    folder = write_folder(tmp_path / "both", arrays_of("phi3") | part)
    with pytest.raises(InvalidAdapterFileError, match="both as a whole and in parts"):
        convert_peft(folder, tmp_path / "out.gguf", base=phi3)
    folder = write_folder(tmp_path / "sound", arrays_of("qwen2"))
    del base.metadata["qwen2.embedding_length"]
    with pytest.raises(InvalidAdapterFileError, match="does not say which rows are whose"):
        convert_peft(folder, tmp_path / "out.gguf", base=base)
    heads = {"head_count": 2, "head_count_kv": 3, "key_length": 16, "value_length": 16}
    base.metadata.update({f"qwen2.attention.{name}": value for name, value in heads.items()})
    with pytest.raises(InvalidAdapterFileError, match=r"attn_q\.weight' is 64 in, 64 out; the base model has 32 rows"):
        convert_peft(folder, tmp_path / "out.gguf", base=base)
    assert not (tmp_path / "out.gguf").exists()


# -- embeddings, and models with other parts ----------------------------------------------------------------------


def test_embeddings(tmp_path):
    """A of the token embeddings lies transposed in GGUF, and what PEFT copied from the base model is left out."""
    stream = Weights(9)
    arrays = {
        "base_model.model.model.embed_tokens.lora_embedding_A": stream.uniform((RANK, VOCABULARY), 1.0),
        "base_model.model.model.embed_tokens.lora_embedding_B": stream.uniform((HIDDEN, RANK), 1.0),
        "base_model.model.model.embed_tokens.base_layer.weight": stream.uniform((VOCABULARY, HIDDEN), 1.0),
        "base_model.model.lm_head.lora_A.weight": stream.uniform((RANK, HIDDEN), 1.0),
        "base_model.model.lm_head.lora_B.weight": stream.uniform((VOCABULARY, RANK), 1.0),
    }
    folder = write_folder(tmp_path / "folder", arrays)
    info = convert_peft(folder, tmp_path / "out.gguf", base=base_of("llama"), dtype="f32")
    assert {tensor.name: tensor.shape for tensor in info.tensors} == {
        "token_embd.weight": (VOCABULARY, HIDDEN),
        "output.weight": (VOCABULARY, HIDDEN),
    }
    file = read_adapter(tmp_path / "out.gguf")
    a, b = (arrays[f"base_model.model.model.embed_tokens.lora_embedding_{side}"] for side in "AB")
    assert np.array_equal(file.matrix(file.pairs["token_embd.weight"].a), a.T)
    assert np.array_equal(file.matrix(file.pairs["token_embd.weight"].b), b)
    tied = base_of("llama")
    del tied.tensors["output.weight"]
    with pytest.raises(LoraIncompatibleError, match="train without embed_tokens and lm_head"):
        convert_peft(folder, tmp_path / "tied.gguf", base=tied)
    assert not (tmp_path / "tied.gguf").exists()


@pytest.mark.parametrize("prefix", ["model.language_model.layers", "language_model.model.layers", "model.text_model.layers"])
def test_the_decoder_of_a_multimodal_model(prefix, tmp_path):
    plain = arrays_of("gemma3_text")
    arrays = {name.replace("model.layers", prefix): array for name, array in plain.items()}
    convert_peft(write_folder(tmp_path / "adapter", arrays), tmp_path / "out.gguf", base=base_of("gemma3_text"))
    assert tensor_digest(tmp_path / "out.gguf") == GOLDENS["gemma3_text"]


def test_other_parts_of_a_multimodal_model_are_refused(tmp_path):
    name = "base_model.model.model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"
    arrays = arrays_of("gemma3_text") | {
        f"{name}.lora_A.weight": np.ones((RANK, HIDDEN), "f4"),
        f"{name}.lora_B.weight": np.ones((HIDDEN, RANK), "f4"),
    }
    folder = write_folder(tmp_path / "adapter", arrays)
    with pytest.raises(InvalidAdapterFileError, match=r"vision_tower.*belongs to the vision tower.*drop=\['vision'\]"):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of("gemma3_text"))
