"""Paths `hf:...` everywhere that a path may be given. The hub's package is a fake here; tests/peers has the real one."""

import asyncio
import errno
import json
import sys
from unittest import mock

import pytest
from helpers.hub_repositories import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, Repository, hub_package
from helpers.peft_folders import arrays_of, write_folder

from llamafu import AsyncLlamafu, Engine, Llamafu
from llamafu.adapters import compare_adapters, convert_peft, inspect_adapter, merge_adapters, read_base
from llamafu.adapters.file import default_name
from llamafu.baking.bake import bake
from llamafu.cli.main import main
from llamafu.errors import ErrorCode, HubError, InvalidAdapterFileError

MODEL, ADAPTER, FOLDER = "hf:tiny/model-GGUF:F32", "hf:tiny/pirate/a.gguf", "hf:tiny/peft-pirate"
OPTIONS = {"n_ctx": 64, "n_threads": 1}


@pytest.fixture(scope="module")
def repositories(tiny_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft") / "pirate"
    write_folder(folder, arrays_of())
    model, a, b, projector = ((tiny_dir / f"{name}.gguf").read_bytes() for name in ("tiny", "a", "b", "mmproj-llava"))
    model_files = {"tiny-F32.gguf": model, "tiny-Q4_0.gguf": b"GGUF", "mmproj-F16.gguf": projector, "README.md": b"#"}
    return {
        "tiny/model-GGUF": Repository(model_files, others={"v1": {"old-F32.gguf": model}}),
        "tiny/pirate": Repository({"a.gguf": a, "b.gguf": b, "notes/x.txt": b""}),
        "tiny/peft-pirate": Repository(
            {path.name: path.read_bytes() for path in folder.iterdir()} | {"optimizer.pt": b"0" * 99}
        ),
        "tiny/private": Repository({"a.gguf": a}, needs="token"),
        "tiny/gated": Repository({"a.gguf": a}, needs="access"),
        "tiny/damaged": Repository({"a.gguf": b"not GGUF"}),
    }


@pytest.fixture
def hub(repositories, tmp_path):
    with hub_package(repositories, tmp_path / "cache") as package:
        yield package


def test_a_model_and_its_adapters(hub, real, tiny_model, tiny_adapter_a):
    with Llamafu(tiny_model, library=real.path, **OPTIONS) as llm:
        adapter = llm.load_lora_adapter(tiny_adapter_a)
        expected = llm.complete("Once", lora={adapter: 1.0}, temperature=0, max_tokens=4).tokens
    with Llamafu.from_pretrained("tiny/model-GGUF:f32", library=real.path, **OPTIONS) as llm:
        assert llm.path.name == "tiny-F32.gguf"
        adapter = llm.load_lora_adapter(ADAPTER)
        assert adapter.name == "a"
        assert llm.complete("Once", lora={adapter: 1.0}, temperature=0, max_tokens=4).tokens == expected
        folder = llm.load_lora_adapter(FOLDER)
        assert folder.name == "peft-pirate"
        assert llm.validate_lora_compatibility("hf:tiny/pirate/b.gguf")
    assert sorted(hub.fetched) == ["a.gguf", "adapter_config.json", "adapter_model.safetensors", "b.gguf", "tiny-F32.gguf"]


def test_an_engine_and_a_revision(hub, real):
    with Engine("hf:tiny/model-GGUF@v1", library=real.path, kernel="none", max_sequences=1, **OPTIONS) as engine:
        assert engine.path.name == "old-F32.gguf"
        assert engine.add_adapter(FOLDER).rank == 4
        engine.add_adapter("hf:tiny/pirate/b.gguf", name="bee")
        assert set(engine.adapters) == {"peft-pirate", "bee"}
        assert engine.complete("Once", lora={"bee": 1.0}, max_tokens=2).lora[0].name == "bee"


def test_the_event_loop_and_unknown_options(hub, real):
    async def ask():
        async with AsyncLlamafu.from_pretrained("tiny/model-GGUF:F32", library=real.path, **OPTIONS) as llm:
            return await llm.tokenize("Once")

    assert asyncio.run(ask())
    for kind in (Llamafu, AsyncLlamafu):
        with pytest.raises(TypeError, match="n_ctxx"):
            kind.from_pretrained("tiny/model-GGUF:F32", n_ctxx=5)


def test_a_projector(hub, real, tiny_model):
    with Llamafu(tiny_model, mmproj_path="hf:tiny/model-GGUF", library=real.path, **OPTIONS):
        assert hub.fetched == ["mmproj-F16.gguf"]


def test_adapter_files(hub, tmp_path, tiny_adapter_a, tiny_adapter_b):
    assert inspect_adapter(ADAPTER) == inspect_adapter(tiny_adapter_a)
    assert compare_adapters([ADAPTER, "hf:tiny/pirate/b.gguf"]).names == ["a", "b"]
    merged = merge_adapters({ADAPTER: 0.5, "hf:tiny/pirate/b.gguf": 0.5}, tmp_path / "merged.gguf", method="cat")
    assert merged.digest == merge_adapters({tiny_adapter_a: 0.5, tiny_adapter_b: 0.5}, tmp_path / "m.gguf", method="cat").digest
    converted = convert_peft(FOLDER, tmp_path / "converted.gguf", base=MODEL)
    assert converted.metadata["general.name"] == "Peft Pirate"
    baked = bake(MODEL, {ADAPTER: 1.0}, tmp_path / "baked.gguf", dtype="keep")
    assert read_base(baked).metadata["llamafu.bake.0.name"] == "a"


def test_what_is_in_the_cache_is_used_without_a_connection(hub):
    with pytest.raises(
        HubError, match="^hf:tiny/pirate/a.gguf is not in the hub's cache, and cannot be fetched: HF_HUB_OFFLINE"
    ):
        hub.raises = OfflineModeIsEnabled()
        inspect_adapter(ADAPTER)
    hub.raises = None
    expected = inspect_adapter(ADAPTER)
    for why in (OfflineModeIsEnabled(), HTTPError("no route"), HfHubHTTPError(503), HfHubHTTPError(429), TimeoutError()):
        hub.raises = why
        assert inspect_adapter(ADAPTER) == expected
        assert inspect_adapter("hf:tiny/pirate") == expected  # of two files the cache has one
        with pytest.raises(
            HubError, match="there is no file b.gguf .there are: a.gguf.; that is what the hub's cache has"
        ) as caught:
            inspect_adapter("hf:tiny/pirate/b.gguf")
        assert caught.value.code is ErrorCode.FILE_NOT_FOUND


@pytest.mark.parametrize(
    ("path", "code", "told"),
    [
        ("hf:tiny/pirate:Q4_K_M", "FILE_NOT_FOUND", "no adapter has the quantisation Q4_K_M .there are: a.gguf, b.gguf"),
        ("hf:tiny/pirate", "INVALID_PARAM", "2 files may be meant .a.gguf, b.gguf.; name one by its path"),
        ("hf:tiny/pirate/notes", "FILE_NOT_FOUND", "notes is a folder without adapter_config.json"),
        ("hf:tiny/nothing", "FILE_NOT_FOUND", "the hub has no such model, or it is private and the token .HF_TOKEN"),
        ("hf:tiny/private", "FILE_NOT_FOUND", "it is private and the token"),
        (
            "hf:tiny/gated",
            "HUB_FAILED",
            "it is gated: ask for access at https://hub.test/tiny/gated, and give a token in HF_TOKEN",
        ),
        ("hf:tiny/pirate@v9/a.gguf", "FILE_NOT_FOUND", "tiny/pirate has no branch, tag or commit 'v9'"),
        ("hf:tiny", "INVALID_PARAM", "is no reference to the Hugging Face hub"),
    ],
)
def test_what_cannot_be_had_is_one_error(hub, path, code, told):
    with pytest.raises(HubError, match=told) as caught:
        inspect_adapter(path)
    assert caught.value.code is ErrorCode[code]
    assert hub.fetched == []


def test_a_member_gets_what_is_private_and_gated(hub):
    hub.token = True
    assert inspect_adapter("hf:tiny/private") == inspect_adapter("hf:tiny/gated")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (HfHubHTTPError(401), "the hub refuses the token .status 401"),
        (HfHubHTTPError(418), "the hub answers with the status 418"),
        (OSError(errno.ENOSPC, "No space left on device"), "cache cannot be written: No space left on device; HF_HOME"),
    ],
)
def test_what_the_hub_says_else(hub, error, told):
    hub.raises = error
    with pytest.raises(HubError, match=told):
        inspect_adapter(ADAPTER)


def test_a_bug_of_the_package_is_not_called_a_lost_connection(hub):
    hub.raises = KeyError("sha")
    with pytest.raises(KeyError, match="sha"):
        inspect_adapter(ADAPTER)


def test_a_connection_that_is_lost_between_two_files(hub):
    download = hub.hf_hub_download

    def fails_later(repo, name, *, revision):
        if hub.fetched:
            raise HTTPError
        return download(repo, name, revision=revision)

    with (
        mock.patch.object(hub, "hf_hub_download", fails_later),
        pytest.raises(HubError, match="adapter_config.json and 1 more cannot be fetched: https://hub.test cannot be reached"),
    ):
        convert_peft(FOLDER, "unwritten.gguf", base="unread.gguf")


def test_files_of_two_commits_are_not_mixed(hub, repositories):
    download = hub.hf_hub_download

    def changes(repo, name, *, revision):
        try:
            return download(repo, name, revision=revision)
        finally:
            hub.repositories = repositories | {"tiny/peft-pirate": Repository({**repositories[repo].files, "new": b""})}

    with (
        mock.patch.object(hub, "hf_hub_download", changes),
        pytest.raises(HubError, match="changed while it was being fetched"),
    ):
        convert_peft(FOLDER, "unwritten.gguf", base="unread.gguf")


def test_without_the_package_the_extra_is_named():
    with (
        mock.patch.dict(sys.modules, {"huggingface_hub": None}),
        pytest.raises(HubError, match=r'hf:tiny/pirate needs the package huggingface_hub; .* pip install "llamafu\[hub\]"'),
    ):
        inspect_adapter("hf:tiny/pirate")


def test_a_damaged_file_is_named_where_it_is(hub):
    with pytest.raises(InvalidAdapterFileError, match=r"models--tiny--damaged.*a\.gguf"):
        inspect_adapter("hf:tiny/damaged")


def test_a_folder_of_the_cache_has_its_repositorys_name(tmp_path):
    commit = tmp_path / "models--owner--my-lora" / "snapshots" / "0123abc"
    (commit / "step-5").mkdir(parents=True)
    assert default_name(commit) == "my-lora"
    assert default_name(commit / "step-5") == "step-5"
    assert default_name(tmp_path / "snapshots" / "0123abc") == "0123abc"


# -- the command line ---------------------------------------------------------------------------------------------


def test_verbs(hub, real, tmp_path, capsys):
    assert main(["inspect", ADAPTER]) == 0
    assert capsys.readouterr().out.startswith("a.gguf is a LoRA adapter")
    assert main(["check", FOLDER, "-m", MODEL]) == 0
    told = capsys.readouterr()
    assert told.out == f"{FOLDER} fits tiny-F32.gguf\n"
    assert told.err == f"{MODEL} is tiny-F32.gguf\n"
    assert main(["inspect", FOLDER, "--base", MODEL]) == 0
    assert capsys.readouterr().out.startswith("peft-pirate is a LoRA adapter")
    assert main(["compare", ADAPTER, "hf:tiny/pirate/b.gguf", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == ["a", "b"]
    assert main(["convert", FOLDER, "-o", str(tmp_path / "c.gguf"), "--base", MODEL]) == 0
    assert main(["merge", f"{ADAPTER}=0.5", FOLDER, "-o", str(tmp_path / "m.gguf"), "--base", MODEL]) == 0
    assert main(["bake", "-m", MODEL, "--lora", ADAPTER, "-o", str(tmp_path / "b.gguf")]) == 0
    capsys.readouterr()
    options = ["-m", MODEL, "--n-ctx", "64", "--threads", "1", "--library", str(real.path)]
    assert main(["complete", *options, "--lora", f"{FOLDER}=0.5", "--max-tokens", "2", "--json", "Once"]) == 0
    assert json.loads(capsys.readouterr().out)["lora"][0]["name"] == "peft-pirate"
    sweep = ["sweep", *options, "--lora", FOLDER, "--mix", "peft-pirate=0.5", "--prompt", "Once", "--max-tokens", "1", "--json"]
    assert main(sweep) == 0
    assert json.loads(capsys.readouterr().out)["mixes"] == [{}, {"peft-pirate": 0.5}]


def test_an_error_is_one_line(hub, capsys):
    assert main(["complete", "-m", "hf:tiny/model-GGUF:Q9", "Once"]) == 1
    told = "llamafu: error: hf:tiny/model-GGUF:Q9: no model has the quantisation Q9 (there are: F32, Q4_0)\n"
    assert capsys.readouterr().err == told
