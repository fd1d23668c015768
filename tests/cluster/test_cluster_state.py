"""The cluster's state on the disk, and its copies."""

import hashlib
import json
import os

import pytest

from llamafu.errors import LlamafuError
from llamafu.ray.cluster_state import STATE_FILE, ClusterState, StateChange, StateStore
from llamafu.ray.folder_mirror import FolderMirror


def digest(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "adapters"
    (folder / "peft").mkdir(parents=True)
    (folder / "a.gguf").write_bytes(b"A")
    (folder / "both.mix.json").write_text("{}")
    (folder / "peft" / "adapter_config.json").write_text("{}")
    (folder / "peft" / "adapter_model.safetensors").write_bytes(b"P")
    (folder / "README.md").write_text("not an adapter")
    (folder / ".hidden.gguf").write_bytes(b"H")
    (folder / "out.gguf").symlink_to(tmp_path / "elsewhere.gguf")
    (tmp_path / "elsewhere.gguf").write_bytes(b"E")
    return folder


FILES = {"a.gguf", "both.mix.json", "peft/adapter_config.json", "peft/adapter_model.safetensors"}


def change(store, *, active=None, unloaded=frozenset(), added=(), removed=()):
    now = store.state
    return StateChange(now.active if active is None else active, unloaded, dict(added), frozenset(removed))


def test_only_adapters_and_mixes_are_shared(folder):
    assert set(StateStore(folder).state.files) == FILES


def test_state_survives(folder):
    """What was committed is there after a restart, and the active set of the settings is not."""
    store = StateStore(folder, {"a": 1.0})
    store.commit(change(store, active={"b": 0.25, "a": 0.5}, unloaded=frozenset({"peft"})), {})
    again = StateStore(folder, {"a": 1.0}).state
    assert (again.version, list(again.active.items()), again.unloaded) == (2, [("b", 0.25), ("a", 0.5)], {"peft"})
    assert again.files == store.state.files


def test_changed_files_come_before_the_version_that_names_them(folder, tmp_path, monkeypatch):
    """A disk that fails in the middle leaves the version of before, and none of the new files."""
    new = tmp_path / "new"
    new.write_bytes(b"N")
    store = StateStore(folder, {"a": 1.0})
    before = store.state
    adding = change(store, active={"n": 1.0}, added={"n.gguf": digest(b"N")}, removed={"a.gguf"})
    with monkeypatch.context() as patch:
        patch.setattr("llamafu.ray.cluster_state.json.dump", _full)
        with pytest.raises(LlamafuError, match="No space left"):
            store.commit(adding, {digest(b"N"): new})
    assert store.state is before
    assert {path.name for path in folder.iterdir()} >= {"a.gguf"}
    assert not (folder / "n.gguf").exists()
    store.commit(adding, {digest(b"N"): new})
    assert (folder / "n.gguf").read_bytes() == b"N"
    assert not (folder / "a.gguf").exists()
    assert StateStore(folder).state == store.state


def _full(*_args, **_options):
    raise OSError(28, "No space left on device")


def test_a_folder_goes_with_its_last_file(folder):
    store = StateStore(folder)
    store.commit(change(store, removed={"peft/adapter_config.json", "peft/adapter_model.safetensors"}), {})
    assert not (folder / "peft").exists()


@pytest.mark.parametrize("path", ["../x.gguf", "/x.gguf", "a/b/c.gguf", ".x.gguf", "x/.y"])
def test_no_change_leads_out_of_the_folder(folder, tmp_path, path):
    new = tmp_path / "new"
    new.write_bytes(b"N")
    store = StateStore(folder)
    with pytest.raises(LlamafuError, match="is no place in a folder of adapters"):
        store.commit(change(store, added={path: digest(b"N")}), {digest(b"N"): new})
    assert store.state.version == 1


def test_new_files_count_once_they_are_steady(folder):
    store = StateStore(folder)
    assert not store.look()
    (folder / "b.gguf").write_bytes(b"B")
    assert not store.look()
    (folder / "b.gguf").write_bytes(b"BB")  # it was in the middle of being written
    assert not store.look()
    assert store.look()
    assert store.state.files["b.gguf"] == digest(b"BB")
    assert store.state.version == 2
    assert not store.look()


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b'{"version": 0, "active": {}, "unloaded": []}', b'{"version": 1, "active": {"a": "x"}, "unloaded": []}',
     b'{"version": 1, "active": [], "unloaded": []}', b'{"version": 1, "active": {"a": NaN}, "unloaded": []}',
     b'{"version": 1, "active": {}, "unloaded": [1]}', b'{"version": 1}', b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_state_is_one_error(folder, data):
    (folder / STATE_FILE).write_bytes(data)
    with pytest.raises(LlamafuError, match="is no state of a cluster"):
        StateStore(folder)


def test_no_folder():
    store = StateStore(None, {})
    assert store.state == ClusterState(1)
    assert store.commit(change(store, active={}), {}).version == 2
    with pytest.raises(LlamafuError, match="no folder of adapters"):
        store.commit(change(store, added={"a.gguf": "x"}), {})
    with pytest.raises(NotADirectoryError):
        StateStore(os.devnull and __import__("pathlib").Path(os.devnull))


def test_the_state_is_one_whole_file(folder):
    store = StateStore(folder)
    for scale in (0.1, 0.2, 0.3):
        store.commit(change(store, active={"a": scale}), {})
        kept = json.loads((folder / STATE_FILE).read_text())
        assert (kept["version"], kept["active"]) == (store.state.version, {"a": scale})
    assert not [path for path in folder.iterdir() if path.name.startswith(f".{STATE_FILE}")]


def test_difference():
    before = ClusterState(3, {"a": 1.0, "b": 0.5}, frozenset(), {"a.gguf": "1"})
    assert StateChange.between(before, before) is None
    other_order = ClusterState(3, {"b": 0.5, "a": 1.0}, frozenset(), {"a.gguf": "1"})
    assert StateChange.between(before, other_order).active == other_order.active
    grown = ClusterState(3, before.active, frozenset({"x"}), {"a.gguf": "2", "c.gguf": "3"})
    found = StateChange.between(before, grown)
    assert (found.added, found.removed, found.unloaded) == ({"a.gguf": "2", "c.gguf": "3"}, frozenset(), {"x"})
    assert StateChange.between(grown, before).removed == {"c.gguf"}


def test_mirror_follows(folder, tmp_path):
    """By the folder where it can be seen, by content where not; a content that is there already is not fetched."""
    store = StateStore(folder)
    for shared in (store.folder, None, tmp_path):
        fetched = []

        def fetch(digest, fetched=fetched):
            fetched.append(digest)
            yield store.path_of(digest).read_bytes()

        (tmp_path / f"mirror-{shared is None}-{shared == tmp_path}").mkdir()
        mirror = FolderMirror(tmp_path / f"mirror-{shared is None}-{shared == tmp_path}", shared, fetch)
        assert mirror.follow(store.state.files, store.state.times)
        assert mirror.files() == store.state.files
        written = (store.folder / "a.gguf").stat().st_mtime_ns
        assert (mirror.folder / "a.gguf").stat().st_mtime_ns == store.state.times["a.gguf"] == written
        assert not mirror.follow(store.state.files, store.state.times)
        assert bool(fetched) == (shared != store.folder)
        fetched.clear()
        renamed = {**store.state.files, "same.gguf": store.state.files["a.gguf"]}
        del renamed["peft/adapter_config.json"], renamed["peft/adapter_model.safetensors"]
        assert mirror.follow(renamed, {})
        assert mirror.files() == renamed
        assert not fetched
        assert not (mirror.folder / "peft").exists()


def test_mirror_takes_no_other_content(folder, tmp_path):
    """A file that changed since its digest was taken, or a damaged piece, never gets an adapter's name."""
    store = StateStore(folder)
    (folder / "a.gguf").write_bytes(b"Z")
    mirror = FolderMirror(tmp_path / "mirror", store.folder, lambda _digest: iter([b"also", b"wrong"]))
    mirror.folder.mkdir()
    with pytest.raises(LlamafuError, match=r"a\.gguf: what was sent is not the content"):
        mirror.follow(store.state.files, store.state.times)
    assert not (mirror.folder / "a.gguf").exists()
    assert not list(mirror.folder.glob(".*"))
