"""Replicas that follow one state, and change it: the hub and real engines' followers, without Ray between them."""

import asyncio
import shutil

import pytest

from llamafu.errors import LlamafuError
from llamafu.ray import state_hub
from llamafu.ray.followed_state import FollowedState
from llamafu.ray.replica_engine import ReplicaEngine
from llamafu.ray.state_hub import StateHub
from llamafu.server.auth.keys import KeyRing
from llamafu.server.storage.adapter_folder import AdapterFolder
from llamafu.server.storage.catalog import Catalog


class CatalogOf:
    """An engine of a few lines with a catalog over its own folder: what a replica has."""

    def __init__(self, engine, folder):
        folder.mkdir()
        self.engine, self.folder = engine, folder
        self.catalog = Catalog(engine, AdapterFolder(folder))


@pytest.fixture(scope="module")
def engines(tiny_model):
    engines = [ReplicaEngine(tiny_model, n_ctx=256, n_threads=1, bank_rank=8, max_sequences=2) for _ in range(2)]
    yield engines
    for engine in engines:
        engine.close()


@pytest.fixture
def cluster(engines, tmp_path, tiny_adapter_a, tiny_adapter_b, monkeypatch):
    """A folder with the adapters a and b, and a function that runs a test with a hub and two followers over it."""
    monkeypatch.setattr(state_hub, "LEASE", 0.5)
    monkeypatch.setattr(state_hub, "POLL", 0.1)
    monkeypatch.setattr(state_hub, "_LOOK", 0.05)
    monkeypatch.setattr("llamafu.ray.followed_state.LEASE", 0.5)
    monkeypatch.setattr("llamafu.ray.followed_state._AGAIN", 0.02)
    folder = tmp_path / "adapters"
    folder.mkdir()
    shutil.copy(tiny_adapter_a, folder / "a.gguf")
    shutil.copy(tiny_adapter_b, folder / "b.gguf")

    def run(test, **options):
        async def all_of_it():
            hub = StateHub(str(folder), {"a": 0.5}, (KeyRing(["my-api-key"]), None, KeyRing()), **options)
            parts = [CatalogOf(engine, tmp_path / f"r{number}") for number, engine in enumerate(engines)]
            followers = [
                FollowedState(f"r{number}", hub, part.engine, part.catalog, part.folder) for number, part in enumerate(parts)
            ]
            try:
                await asyncio.gather(*(follower.current() for follower in followers))
                async with asyncio.timeout(20):
                    await test(hub, parts, followers)
            finally:
                await asyncio.gather(*(follower.close() for follower in followers))
                hub.close()
                for part in parts:
                    part.engine.set_lora_adapters({})
                    for name in [*part.engine.mixes]:
                        part.engine.remove_mix(name)
                    for name in [*part.engine.adapters]:
                        part.engine.remove_adapter(name)

        asyncio.run(all_of_it())

    return folder, run


async def until(condition):
    for _attempt in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail("it never came true")


def active(parts):
    return [part.engine.active_lora_adapters for part in parts]


def test_a_change_is_everywhere_once_it_is_made(cluster):
    folder, run = cluster

    async def test(_hub, parts, followers):
        assert active(parts) == [{"a": 0.5}] * 2
        for scale in (0.1, 0.2, 0.3):
            async with followers[0].changing():
                parts[0].engine.set_lora_adapters({"b": scale, "a": 1.0})
            assert active(parts) == [{"b": scale, "a": 1.0}] * 2
        async with followers[1].changing():
            parts[1].catalog.mixes.add("both", {"a": 0.5, "b": 0.5}, overwrite=False)
            parts[1].catalog.unload("a")  # leaves the active set, and the mix waits
        assert active(parts) == [{"b": 0.3}] * 2
        assert [set(part.engine.adapters) for part in parts] == [{"b"}] * 2
        async with followers[0].changing():
            parts[0].catalog.register("a", "a")
        assert [set(part.engine.adapters) for part in parts] == [{"a", "b"}] * 2
        assert (folder / "both.mix.json").exists()

    run(test)


def test_adapters_are_sent_and_deleted(cluster):
    folder, run = cluster

    async def test(hub, parts, followers):
        async with followers[0].changing():
            parts[0].catalog.receive("new", lambda path: shutil.copy(folder / "a.gguf", path))
        digests = [part.engine.adapters["new"].digest for part in parts]
        assert digests == [parts[0].engine.adapters["a"].digest] * 2
        assert (folder / "new.gguf").exists()
        async with followers[1].changing():
            parts[1].catalog.delete("new")
        assert ["new" in part.engine.adapters for part in parts] == [False, False]
        assert not (folder / "new.gguf").exists()
        directory, ring, _ = await hub.directory(0, 0)
        assert set(directory.adapters) == {"a", "b"}
        assert directory.active == {"a": 0.5}
        assert ring.rights("my-api-key") == "api"

    run(test)


def test_a_change_that_cannot_be_kept_is_taken_back(cluster, monkeypatch):
    _, run = cluster

    async def test(hub, parts, followers):
        def full(*_arguments):
            message = "no space"
            raise LlamafuError(message)

        with monkeypatch.context() as patch:
            patch.setattr(hub._store, "commit", full)
            with pytest.raises(LlamafuError, match="no space"):
                async with followers[0].changing():
                    parts[0].engine.set_lora_adapters({"b": 1.0})
        await followers[0].current()
        assert active(parts) == [{"a": 0.5}] * 2
        with pytest.raises(ValueError, match="in the middle"):
            async with followers[0].changing():
                parts[0].engine.set_lora_adapters({})
                message = "in the middle"
                raise ValueError(message)
        await followers[0].current()
        assert active(parts) == [{"a": 0.5}] * 2
        async with followers[1].changing():  # nobody's turn is left over
            parts[1].engine.set_lora_adapters({"b": 1.0})
        assert active(parts) == [{"b": 1.0}] * 2

    run(test)


def test_one_change_at_a_time(cluster):
    _, run = cluster

    async def test(_hub, parts, followers):
        async def add(number):
            async with followers[number % 2].changing():
                engine = parts[number % 2].engine
                before = engine.active_lora_adapters.get("b", 0.0)
                await asyncio.sleep(0.01)
                engine.set_lora_adapters({"b": before + 0.1})

        await asyncio.gather(*(add(number) for number in range(6)))
        assert active(parts) == [{"b": pytest.approx(0.6)}] * 2

    run(test)


def test_files_that_others_put_into_the_folder(cluster):
    folder, run = cluster

    async def test(_hub, parts, _followers):
        shutil.copy(folder / "b.gguf", folder / "late.gguf")
        await until(lambda: all("late" in part.engine.adapters for part in parts))
        (folder / "late.gguf").unlink()
        await until(lambda: not any("late" in part.engine.adapters for part in parts))

    run(test)


def test_a_replica_that_does_not_follow_answers_nothing(cluster, monkeypatch):
    """Its lease ends before a change is answered; until it follows again its requests wait."""
    _, run = cluster
    monkeypatch.setattr("llamafu.ray.followed_state._PATIENCE", 0.3)

    async def test(hub, parts, followers):
        real, stuck = hub.watch, asyncio.Event()

        async def watch(replica, *known):
            if replica == "r1":
                await stuck.wait()
            return await real(replica, *known)

        hub.watch = watch
        await asyncio.sleep(0.2)
        async with followers[0].changing():
            parts[0].engine.set_lora_adapters({"b": 1.0})
        assert active(parts)[1] == {"a": 0.5}
        with pytest.raises(Exception, match="cannot reach the holder"):
            await followers[1].current()
        stuck.set()
        monkeypatch.setattr("llamafu.ray.followed_state._PATIENCE", 10)
        await followers[1].current()
        assert active(parts)[1] == {"b": 1.0}

    run(test)


def test_a_new_hub_goes_on_where_the_last_one_ended(cluster):
    folder, run = cluster

    async def change(_hub, parts, followers):
        async with followers[0].changing():
            parts[0].engine.set_lora_adapters({"b": 0.25})

    run(change)
    hub = StateHub(str(folder), {"a": 0.5}, (KeyRing(), None, KeyRing()))
    state = hub._store.state
    hub.close()
    assert (state.active, state.version) == ({"b": 0.25}, 2)


def test_a_dead_replicas_turn_passes(cluster):
    _, run = cluster

    async def test(hub, parts, followers):
        await hub.begin_change("dead")
        async with followers[0].changing():
            parts[0].engine.set_lora_adapters({"b": 1.0})
        with pytest.raises(LlamafuError, match="took too long"):
            await hub.put("dead", "x", b"", is_first=True)
        assert active(parts) == [{"b": 1.0}] * 2

    run(test)


def test_keys_that_change_in_their_file(tmp_path):
    path = tmp_path / "keys.toml"

    def write(keys):
        path.write_text(f"api_keys = {keys}\n")
        path.chmod(0o600)

    async def run():
        hub = StateHub(None, {}, (KeyRing(["given-api-key"]), str(path), KeyRing()))
        shared = await hub.watch("r0", 0, 0)
        assert [shared.ring.rights(key) for key in ("given-api-key", "first-key", "second-key")] == ["api", "api", None]
        write(["second-key"])
        for _attempt in range(10):
            if (news := await hub.watch("r0", shared.state.version, shared.ring_number)) is not None:
                break
        hub.close()
        assert [news.ring.rights(key) for key in ("given-api-key", "first-key", "second-key")] == ["api", None, "api"]

    write(["first-key"])
    asyncio.run(run())
