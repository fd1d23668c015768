"""Factors of a vision tower or a projector, which no adapter reaches in libllama: refused by name, or left out on request."""

from __future__ import annotations

import pytest
from helpers.peft_folders import arrays_of, write_folder
from helpers.tower_adapters import TOWER_SIZES, write_tower_adapter, write_tower_folder

from llamafu import Llamafu
from llamafu.adapters import convert_peft, inspect_adapter
from llamafu.engine import Engine
from llamafu.errors import InvalidAdapterFileError, LoraIncompatibleError

PARTS = {"llava": ("vision", "projector"), "qwen2vl": ("vision",)}


@pytest.fixture(scope="module")
def doors(tiny_dir):
    """What loads an adapter into a model, and into an engine, of a model that sees."""
    files = {"mmproj_path": tiny_dir / "mmproj-llava.gguf"}
    with (
        Llamafu(tiny_dir / "tiny.gguf", n_ctx=256, **files) as llm,
        Engine(tiny_dir / "tiny.gguf", n_ctx=256, **files) as engine,
    ):
        yield llm.load_lora_adapter, engine.add_adapter


@pytest.mark.parametrize("language", [True, False])
def test_a_gguf_adapter_is_refused_by_its_tensors(doors, tmp_path, language):
    path = write_tower_adapter(tmp_path / "tower.gguf", language=language)
    for load in doors:
        with pytest.raises(LoraIncompatibleError) as refused:
            load(path)
        assert all(name in str(refused.value) for name in TOWER_SIZES)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", PARTS)
def test_a_peft_folder_is_refused_with_the_mend(doors, tmp_path, family):
    folder = write_tower_folder(tmp_path / "tower", family=family)
    for load in doors:
        with pytest.raises(InvalidAdapterFileError) as refused:
            load(folder)
        assert all(f"--drop {part}" in str(refused.value) for part in PARTS[family])
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", PARTS)
def test_without_the_tower_the_rest_is_what_it_would_be_alone(tiny_dir, doors, tmp_path, family):
    base, folder = tiny_dir / "tiny.gguf", write_tower_folder(tmp_path / "tower", family=family)
    convert_peft(folder, tmp_path / "dropped.gguf", base=base, drop=PARTS[family], dtype="f32")
    convert_peft(write_folder(tmp_path / "plain", arrays_of()), tmp_path / "plain.gguf", base=base, dtype="f32")
    dropped, plain = (inspect_adapter(tmp_path / f"{name}.gguf") for name in ("dropped", "plain"))
    assert dropped.tensors == plain.tensors
    for load in doors:
        load(tmp_path / "dropped.gguf", name=f"{family}-dropped")


def test_an_adapter_of_the_tower_alone_leaves_nothing(tiny_dir, tmp_path):
    folder = write_tower_folder(tmp_path / "tower", family="llava", language=False)
    with pytest.raises(InvalidAdapterFileError, match="all of its modules were left out"):
        convert_peft(folder, tmp_path / "nothing.gguf", base=tiny_dir / "tiny.gguf", drop=PARTS["llava"])
