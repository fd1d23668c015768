"""`llamafu adapters list` and `rm`: sizes, last uses, and what is refused."""

import io
import json
import os
import shutil

import pytest

from llamafu.cli.main import main
from llamafu.examples.adapters import example_adapters
from llamafu.server.storage.last_use import last_use, note_use


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMAFU_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TZ", "UTC")
    folder = tmp_path / "adapters"
    folder.mkdir()
    for path in example_adapters().values():
        shutil.copy(path, folder)
    (folder / "peft").mkdir()
    (folder / "peft" / "adapter_config.json").write_text("{}", encoding="utf-8")
    return folder


def test_list(folder, capsys):
    note_use(folder / "pirate.gguf", 1_700_000_000.0)
    assert main(["adapters", "list", str(folder)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["adapter", "size", "last", "use"]
    assert [row.split()[0] for row in rows] == ["peft", "pirate", "shout"]
    assert "2023-11-1" in rows[1]
    assert rows[2].endswith("never recorded")
    assert main(["adapters", "list", str(folder), "--json"]) == 0
    report = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert report["pirate"]["size"] == (folder / "pirate.gguf").stat().st_size
    assert (report["pirate"]["last_used"], report["shout"]["last_used"]) == (1_700_000_000.0, None)
    assert report["peft"]["size"] == 2


def test_rm(folder, capsys):
    note_use(folder / "pirate.gguf", 1.0)
    for name in ("pirate", "peft"):
        assert main(["adapters", "rm", str(folder), name, "--yes"]) == 0
    assert [path.name for path in folder.iterdir()] == ["shout.gguf"]
    assert last_use(folder / "pirate.gguf") is None
    for name in ("pirate", "../data", ".", "shout.gguf"):
        assert main(["adapters", "rm", str(folder), name, "--yes"]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"llamafu: error: no such adapter: {name!r} in {folder} (adapters: shout)")
    assert (folder / "shout.gguf").exists()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("YES\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_rm_asks_on_a_terminal(folder, monkeypatch, capsys, answer, status):
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert main(["adapters", "rm", str(folder), "pirate"]) == status
    shown = capsys.readouterr().err
    assert f"remove {folder / 'pirate.gguf'} (1.9 MB) for good? [y/N]" in shown
    assert ("nothing was removed" in shown) == bool(status)
    assert (folder / "pirate.gguf").exists() == bool(status)


def test_rm_without_a_terminal_needs_the_word(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["adapters", "rm", str(folder), "pirate"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert (folder / "pirate.gguf").exists()


def test_what_is_no_adapter_is_shown_and_stays(folder, tiny_model, tiny_adapter_a, capsys):
    """A baked base model, another file, a checkpoint of training, a soft prompt: none of them is removed by `rm`."""
    shutil.copy(tiny_model, folder / "baked.gguf")
    (folder / "text.gguf").write_text("no model", encoding="utf-8")
    (folder / "empty.gguf").touch()
    cut = tiny_adapter_a.read_bytes()[:-50]
    (folder / "mlx").mkdir()
    (folder / "mlx" / "adapter_config.json").write_text('{"fine_tune_type": "lora"}', encoding="utf-8")
    for name in ("adapters.safetensors", "0000100_adapters.safetensors"):
        (folder / "mlx" / name).touch()
    (folder / "cut.gguf").write_bytes(cut)  # an adapter all the same, which nobody can load
    for name, config, more in (
        ("run", "{}", "checkpoint-1/adapter_config.json"),
        ("merged", "{}", "model.safetensors"),
        ("prompt", '{"peft_type": "PROMPT_TUNING"}', "README.md"),
    ):
        (folder / name / more).parent.mkdir(parents=True)
        (folder / name / "adapter_config.json").write_text(config, encoding="utf-8")
        (folder / name / more).touch()
    before = sorted(folder.rglob("*"))
    assert main(["adapters", "list", str(folder)]) == 0
    adapters, others = capsys.readouterr().out.split("\n\n")
    assert [row.split()[0] for row in adapters.splitlines()[1:]] == ["cut", "merged", "mlx", "peft", "pirate", "run", "shout"]
    said = {row.split()[0]: row for row in others.splitlines()[1:]}
    assert "a base model or other GGUF file (model, llama, 21 tensors)" in said["baked"]
    assert "PROMPT_TUNING" in said["prompt"]
    assert said.keys() == {"baked", "text", "empty", "prompt"}
    assert main(["adapters", "list", str(folder), "--json"]) == 0
    report = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert {name for name, each in report.items() if not each["adapter"]} == said.keys()
    for name in said:
        assert main(["adapters", "rm", str(folder), name, "--yes"]) == 1
        assert "is not removed, since it is no adapter but " in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    assert main(["adapters", "rm", str(folder), "cut", "--yes"]) == 0


@pytest.mark.parametrize(
    "more",
    [
        "model.pt",
        "model.onnx",
        "model.h5",
        "consolidated.bin",
        "pytorch_model.bin",
        "model.safetensors",
        "train.jsonl",
        "notes.md",
        "other-adapter_adapters.safetensors",
        "checkpoint-1/adapter_config.json",
        "README.md/x",
    ],
)
def test_a_folder_with_more_than_an_adapter_stays(folder, capsys, more):
    (folder / "peft" / more).parent.mkdir(exist_ok=True)
    (folder / "peft" / more).touch()
    assert main(["adapters", "list", str(folder)]) == 0
    assert "\npeft " in capsys.readouterr().out
    assert main(["adapters", "rm", str(folder), "peft", "--yes"]) == 1
    error = capsys.readouterr().err
    assert "more than an adapter is in it" in error
    assert more.split("/")[0] in error
    assert (folder / "peft" / more).exists()


def test_what_is_written_beside_adapters_goes_with_them(folder):
    names = "adapter_model.safetensors 0000100_adapters.safetensors tokenizer.json optimizer.pt rng_state.pth rng_state_1.pth"
    for name in (*names.split(), "training_args.bin", "README.md", ".git/config", ".cache/huggingface/x", "runs/now/events"):
        (folder / "peft" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "peft" / name).touch()
    assert main(["adapters", "rm", str(folder), "peft", "--yes"]) == 0
    assert not (folder / "peft").exists()


def test_an_adapter_of_a_mix_stays(folder, capsys):
    (folder / "captain.mix.json").write_text('{"lora": {"pirate": 0.5}}', encoding="utf-8")
    assert main(["adapters", "rm", str(folder), "pirate", "--yes"]) == 1
    assert "'pirate' is part of a mix (captain.mix.json); remove that file first" in capsys.readouterr().err
    assert (folder / "pirate.gguf").exists()
    (folder / "captain.mix.json").unlink()
    assert main(["adapters", "rm", str(folder), "pirate", "--yes"]) == 0


def test_a_name_of_two_is_refused(folder, capsys):
    """A file and a folder of one name: `rm` takes either by its own name, and neither by the common one."""
    (folder / "pirate").mkdir()
    (folder / "pirate" / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert main(["adapters", "list", str(folder)]) == 0
    assert [row.split()[0] for row in capsys.readouterr().out.splitlines()[1:]] == ["peft", "pirate.gguf", "pirate/", "shout"]
    assert main(["adapters", "rm", str(folder), "pirate", "--yes"]) == 1
    assert "the name 'pirate' is ambiguous; there are pirate.gguf and pirate/" in capsys.readouterr().err
    assert main(["adapters", "rm", str(folder), "pirate/", "--yes"]) == 0
    assert not (folder / "pirate").exists()
    assert main(["adapters", "rm", str(folder), "pirate", "--yes"]) == 0
    assert not (folder / "pirate.gguf").exists()


def test_what_cannot_be_listed(tmp_path, capsys):
    assert main(["adapters", "list", str(tmp_path / "nowhere")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert main(["adapters", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no adapters\n"
    assert main(["adapters"]) == 2


def test_a_folder_reached_by_a_link_is_the_same(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    note_use(tmp_path / "link" / "shout.gguf", 5.0)
    assert last_use(folder / "shout.gguf") == 5.0


def test_what_is_skipped_is_named(folder, tmp_path, capsys):
    """A snapshot whose files are links to elsewhere, a link, a name in capitals, and one that is no text."""
    blob = tmp_path / "blob"
    blob.write_bytes((folder / "pirate.gguf").read_bytes())
    (folder / "snapshot").mkdir()
    (folder / "snapshot" / "adapter_config.json").symlink_to(blob)
    (folder / "link.gguf").symlink_to(blob)
    (folder / "BIG.GGUF").write_bytes(blob.read_bytes())
    (folder / os.fsdecode(b"\xff.gguf")).write_bytes(blob.read_bytes())
    assert main(["adapters", "list", str(folder)]) == 0
    skipped = capsys.readouterr().out.split("\nskipped\n")[1].splitlines()
    assert [line.split(":")[0] for line in skipped] == ["BIG.GGUF", "link.gguf", "snapshot", "\\udcff.gguf"]
    assert "ends in .GGUF" in skipped[0]
    assert "adapter_config.json is a link that leads out of the folder" in skipped[2]
    assert main(["adapters", "list", str(folder), "--json"]) == 0
    assert "it is a link" in {each["name"]: each["what"] for each in json.loads(capsys.readouterr().out)}["link.gguf"]
    assert main(["adapters", "rm", str(folder), "link", "--yes"]) == 1
    assert "it is skipped: it is a link that leads out of the folder" in capsys.readouterr().err
