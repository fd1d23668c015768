"""`llamafu adapters list` and `rm`: sizes, last uses, and what is refused."""

import json
import shutil

import pytest

from llamafu._last_use import last_use, note_use
from llamafu.cli.main import main
from llamafu.example_adapters import example_adapters


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
        assert main(["adapters", "rm", str(folder), name]) == 0
    assert [path.name for path in folder.iterdir()] == ["shout.gguf"]
    assert last_use(folder / "pirate.gguf") is None
    for name in ("pirate", "../data", ".", "shout.gguf"):
        assert main(["adapters", "rm", str(folder), name]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"llamafu: error: no such adapter: {name!r} in {folder} (adapters: shout)")
    assert (folder / "shout.gguf").exists()


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
