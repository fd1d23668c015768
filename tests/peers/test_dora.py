"""DoRA adapters as plain factors, against PEFT's own merge on torch."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny_hf import make_model, write_gguf

from llamafu.adapters import convert_peft, read_adapter, read_base
from llamafu.adapters.factors import factors, strength
from llamafu.adapters.peft.base_weights import base_weights
from llamafu.errors import InvalidAdapterFileError

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"]
FULL = 64


def save(kind, folder, **options):
    """Save a random DoRA adapter, and return what PEFT merges it to, as a GGUF file."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "use_dora": True, **options}
    adapted = get_peft_model(make_model(kind), LoraConfig(**options)).eval()
    stream = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=stream))
            elif "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=stream))
    adapted.save_pretrained(folder)
    write_gguf(adapted.merge_and_unload(), folder / "merged.gguf")
    return folder / "merged.gguf"


def changes(base, merged):
    """What PEFT changed, by tensor, in GGUF's layout."""
    weights = [base_weights(read_base(path)) for path in (base, merged)]
    found = {}
    for name, shape in read_base(base).tensors.items():
        if len(shape) == 2:
            before, after = (each.matrix(name, None, shape[1]).astype("f8") for each in weights)
            if np.abs(after - before).max() > 0:
                found[name] = after - before
    return found


def made(path):
    file = read_adapter(path)
    found = {}
    for name in file.pairs:
        a, b = factors(file, name)
        change = strength(file, name) * b @ a
        found[name] = change.T if name == "token_embd.weight" else change
    return found


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "granite"])
@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True, "rank_pattern": {"o_proj": 2}, "alpha_pattern": {"q_proj": 3}}], ids=str
)
def test_factors_of_full_rank_are_pefts_merge(kind, options, tmp_path):
    base = tmp_path / "base.gguf"
    write_gguf(make_model(kind), base)
    theirs = changes(base, save(kind, tmp_path / "dora", **options))
    convert_peft(tmp_path / "dora", tmp_path / "out.gguf", base=base, dora="svd", dora_rank=FULL, dtype="f32")
    ours = made(tmp_path / "out.gguf")
    assert ours.keys() == theirs.keys()
    for name, change in theirs.items():
        assert np.linalg.norm(ours[name] - change) <= 1e-3 * np.linalg.norm(change), name


def test_a_lower_rank_is_the_best_there_is_and_tells_its_error(tmp_path):
    base = tmp_path / "base.gguf"
    write_gguf(make_model("mistral"), base)
    theirs = changes(base, save("mistral", tmp_path / "dora"))
    info = convert_peft(tmp_path / "dora", tmp_path / "out.gguf", base=base, dora="svd", dora_rank=6, dtype="f32")
    ours = made(tmp_path / "out.gguf")
    told = dict(zip(info.metadata["llamafu.convert.dora.tensors"], info.metadata["llamafu.convert.dora.errors"], strict=True))
    for name, change in theirs.items():
        sizes = np.linalg.svd(change, compute_uv=False)
        best = np.linalg.norm(sizes[6:]) / np.linalg.norm(sizes)
        error = np.linalg.norm(ours[name] - change) / np.linalg.norm(change)
        assert error == pytest.approx(best, rel=1e-3)
        assert told[name] == pytest.approx(error, rel=1e-3)


def test_the_weights_may_come_from_safetensors(tmp_path):
    """Sharded or not, and with the same result as from the GGUF model."""
    model = make_model("mistral")
    write_gguf(model, tmp_path / "base.gguf")
    save("mistral", tmp_path / "dora")
    one = convert_peft(tmp_path / "dora", tmp_path / "one.gguf", base=tmp_path / "base.gguf", dora="svd", dtype="f32")
    for size in ("5GB", "100KB"):
        model.save_pretrained(tmp_path / size, max_shard_size=size)
        two = convert_peft(tmp_path / "dora", tmp_path / "two.gguf", base=tmp_path / size, dora="svd", dtype="f32")
        assert two.digest == one.digest
    assert len(list((tmp_path / "100KB").glob("*.safetensors"))) > 1
    save_file({"x": torch.zeros(1)}, tmp_path / "5GB" / "model.safetensors")
    with pytest.raises(InvalidAdapterFileError, match=r"safetensors of .* have no 'blk\.0\.attn_q\.weight'"):
        convert_peft(tmp_path / "dora", tmp_path / "three.gguf", base=tmp_path / "5GB", dora="svd")


def test_a_model_with_experts(tmp_path):
    """On its attention: its experts are parameters, for which PEFT has no DoRA."""
    base = tmp_path / "base.gguf"
    write_gguf(make_model("mixtral"), base)
    theirs = changes(base, save("mixtral", tmp_path / "dora", target_modules=["q_proj", "v_proj"]))
    convert_peft(tmp_path / "dora", tmp_path / "out.gguf", base=base, dora="svd", dora_rank=FULL, dtype="f32")
    ours = made(tmp_path / "out.gguf")
    for name, change in theirs.items():
        assert np.linalg.norm(ours[name] - change) <= 1e-3 * np.linalg.norm(change), name
