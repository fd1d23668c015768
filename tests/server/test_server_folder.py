"""The adapters folder: nothing outside of it, changes seen whole, files received and deleted."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafu._util.file_names import is_name
from llamafu.server.storage.adapter_folder import AdapterFolder, Numbers
from llamafu.service import InvalidRequestError, NotFoundError


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "outside.gguf").write_bytes(b"secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "adapter_config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def folder(outside):
    inside = outside / "adapters"
    inside.mkdir()
    (inside / "pirate.gguf").write_bytes(b"abc")
    (inside / "peft").mkdir()
    (inside / "peft" / "adapter_config.json").write_bytes(b"{}")
    (inside / "peft" / "adapter_model.safetensors").write_bytes(b"1234")
    return AdapterFolder(inside)


def test_scan(folder):
    for name in ("notes.txt", ".hidden.gguf", "README"):
        (folder.folder / name).touch()
    (folder.folder / "empty").mkdir()
    (folder.folder / "directory.gguf").mkdir()
    (folder.folder / "pirate").mkdir()
    (folder.folder / "pirate" / "adapter_config.json").touch()
    found = folder.scan()
    assert {name: (one.path.name, one.nbytes) for name, one in found.items()} == {
        "peft": ("peft", 6),
        "pirate": ("pirate.gguf", 3),
    }
    assert folder.path_of("peft") == folder.folder / "peft"


def test_nothing_outside_is_reached(folder, outside):
    inside = folder.folder
    (inside / "link.gguf").symlink_to(outside / "outside.gguf")
    (inside / "away").symlink_to(outside / "elsewhere")
    (inside / "circle.gguf").symlink_to(inside / "circle.gguf")
    (inside / "dangling.gguf").symlink_to(inside / "nothing.gguf")
    (inside / "mixed").mkdir()
    (inside / "mixed" / "adapter_config.json").touch()
    (inside / "mixed" / "adapter_model.safetensors").symlink_to(outside / "outside.gguf")
    (inside / "alias.gguf").symlink_to(inside / "pirate.gguf")
    assert set(folder.scan()) == {"alias", "peft", "pirate"}
    names = ["../outside", "..", ".", "", "/etc/passwd", "peft/../../outside", "link", "away", "mixed", "circle", "dangling"]
    for name in [*names, "pirate.gguf", "pirate\0", "PIRATE/", str(outside / "outside"), "..\\outside"]:
        with pytest.raises(NotFoundError):
            folder.path_of(name)


@given(st.text(max_size=12))
def test_a_name_is_one_part_of_a_path(name):
    if is_name(name):
        assert os.path.basename(name) == name  # noqa: PTH119 - the string's view of it
        assert "\0" not in name
        assert name not in {".", ".."}


def test_names():
    assert all(map(is_name, ["a", "my adapter-1.5_x", "漢字", "é" * 100]))
    assert not any(map(is_name, ["", ".a", " a", "a ", "a/b", "a\\b", "a:b", "a\nb", "a\x7f", "é" * 101, "\ud800"]))


def test_changes_are_told_once_and_whole(folder):
    assert not folder.poll(), "seen once: it may be being written"
    assert [one.name for one in folder.poll().added] == ["peft", "pirate"]
    assert not folder.poll()
    (folder.folder / "new.gguf").write_bytes(b"half")
    assert not folder.poll()
    (folder.folder / "new.gguf").write_bytes(b"half and half")
    assert not folder.poll(), "it still grows"
    assert [one.name for one in folder.poll().added] == ["new"]
    (folder.folder / "peft" / "adapter_model.safetensors").write_bytes(b"another")
    (folder.folder / "pirate.gguf").unlink()
    assert folder.poll().removed == ("pirate",)
    assert [one.name for one in folder.poll().changed] == ["peft"]
    assert not folder.poll()
    (folder.folder / "pirate.gguf").write_bytes(b"back")
    folder.poll()
    assert [one.name for one in folder.poll().added] == ["pirate"]


def test_what_was_noted_is_not_told_again(folder):
    with folder.receive("new") as path:
        path.write_bytes(b"content")
    folder.mark_known("new")
    folder.mark_known("gone")
    for _ in range(3):
        assert "new" not in [one.name for one in folder.poll().added]
    (folder.folder / "new.gguf").unlink()
    assert folder.poll().removed == ("new",), "though no look had told of it"


def test_receive(folder):
    with folder.receive("new") as path:
        path.write_bytes(b"content")
        assert "new" not in folder.scan()
    assert folder.path_of("new").read_bytes() == b"content"
    assert not [each for each in folder.folder.iterdir() if each.name.startswith(".")]


def test_an_upload_that_fails_leaves_nothing(folder):
    before = sorted(folder.folder.iterdir())
    with pytest.raises(ZeroDivisionError), folder.receive("new") as path:
        path.write_bytes(b"half")
        _ = 1 / 0
    assert sorted(folder.folder.iterdir()) == before


@pytest.mark.parametrize("name", ["pirate", "peft"])
def test_an_upload_replaces_nothing(folder, name):
    with pytest.raises(InvalidRequestError, match="already"), folder.receive(name):
        pytest.fail("not entered")


def test_of_two_uploads_at_once_one_wins(folder):
    with pytest.raises(InvalidRequestError, match="already"), folder.receive("new") as path:
        path.write_bytes(b"late")
        with folder.receive("new") as other:
            other.write_bytes(b"early")
    assert folder.path_of("new").read_bytes() == b"early"


@pytest.mark.parametrize("name", ["../x", ".x", "", "a/b"])
def test_an_upload_with_a_bad_name(folder, name):
    with pytest.raises(InvalidRequestError, match="no adapter's name"), folder.receive(name):
        pytest.fail("not entered")


def test_delete(folder, outside):
    (folder.folder / "alias.gguf").symlink_to(folder.folder / "pirate.gguf")
    (folder.folder / "link.gguf").symlink_to(outside / "outside.gguf")
    folder.delete("alias")
    folder.delete("peft")
    assert set(folder.scan()) == {"pirate"}
    for name in ("link", "../outside", "gone"):
        with pytest.raises(NotFoundError):
            folder.delete(name)
    assert (outside / "outside.gguf").exists()


def test_no_folder(tmp_path):
    with pytest.raises(NotADirectoryError, match="--adapters"):
        AdapterFolder(tmp_path / "none")


def test_numbers_are_never_given_again():
    numbers = Numbers()
    assert [numbers.add(name) for name in ("a", "b", "a")] == [0, 1, 0]
    numbers.remove("a")
    numbers.remove("a")
    assert numbers.name(0) is None
    assert [numbers.add(name) for name in ("c", "a")] == [2, 3]
    assert numbers.items() == ((1, "b"), (2, "c"), (3, "a"))
    assert numbers.name(3) == "a"
