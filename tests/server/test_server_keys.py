"""Keys: generated, kept, compared, changed while the server runs; and what each request may do."""

import logging
import os
import stat
import tomllib

import pytest

from llamafu.server.auth import keys
from llamafu.server.auth.keys import Guard, KeyFile, KeyRing, presented, read_keys, write_new_keys
from llamafu.server.auth.startup_keys import load_startup_keys
from llamafu.server.settings import Settings
from llamafu.service import AuthenticationError, PermissionDeniedError

RING = KeyRing(api=["api-1", "api-2"], admin=["admin-1"])
GUARD = Guard(lambda: RING)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.toml"


def write(path, text, mode=0o600):
    path.touch()
    path.chmod(mode)
    path.write_text(text, encoding="utf-8")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_rights():
    assert [RING.rights(key) for key in ("api-1", "api-2", "admin-1", "api-", "", "api-11", "é")] == [
        *("api", "api", "admin"),
        *(None, None, None, None),
    ]
    assert KeyRing(api=["a"], admin=["a"]).rights("a") == "admin"
    both = KeyRing(admin=["x"]) + KeyRing(api=["x", "y"])
    assert (both.rights("x"), both.rights("y"), len(both)) == ("admin", "api", 3)


def test_every_key_is_compared_in_constant_time(monkeypatch):
    """Also after a match: neither the place of a key nor what it begins with can be timed."""
    seen = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: seen.append((len(a), len(b))) or a == b)
    for key in ("api-1", "admin-1", "no", "x" * 10_000):
        seen.clear()
        RING.rights(key)
        assert seen == [(32, 32)] * 3


def test_a_ring_shows_no_key():
    assert "api-1" not in repr(vars(RING))
    for key in ("", "a b", "a\n", "é"):
        with pytest.raises(ValueError, match="a key") as caught:
            KeyRing(api=[key])
        assert not key.strip() or repr(key) not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "api_route", "admin_route"),
    [
        ({}, 401, 401),
        ({"x-api-key": "wrong"}, 401, 401),
        ({"x-api-key": ""}, 401, 401),
        ({"authorization": "Basic admin-1"}, 401, 401),
        ({"authorization": "admin-1"}, 401, 401),
        ({"x-api-key": "api-1"}, "api", 403),
        ({"authorization": "Bearer api-2"}, "api", 403),
        ({"authorization": "bearer  api-2 "}, "api", 403),
        ({"x-admin-key": "api-1"}, "api", 403),
        ({"x-api-key": "admin-1"}, "admin", "admin"),
        ({"x-admin-key": "admin-1"}, "admin", "admin"),
        ({"authorization": "Bearer admin-1"}, "admin", "admin"),
        ({"x-api-key": "api-1", "x-admin-key": "admin-1"}, "admin", "admin"),
        ({"x-api-key": "api-1", "x-admin-key": "wrong"}, "api", 403),
    ],
)
def test_what_keys_open(headers, api_route, admin_route):
    messages = []

    def outcome(needed):
        try:
            return GUARD.demand(needed, headers)
        except (AuthenticationError, PermissionDeniedError) as error:
            messages.append(str(error))
            return error.status

    assert outcome("api") == api_route
    assert outcome("admin") == admin_route
    assert outcome(None) in {None, "api", "admin"}
    assert not [key for key in presented(headers) if key in "".join(messages)]


def test_without_keys_everything_is_open():
    assert Guard(None).demand("admin", {}) == "admin"


def test_new_keys_are_for_the_owner_alone(path):
    old = os.umask(0)
    try:
        api, admin = write_new_keys(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert tomllib.loads(path.read_text("utf-8")) == {"api_keys": [api], "admin_keys": [admin]}
    ring = read_keys(path)
    assert (ring.rights(api), ring.rights(admin)) == ("api", "admin")
    assert len(api) > 40
    assert write_new_keys(path) != (api, admin)
    assert sorted(each.name for each in path.parent.iterdir()) == ["keys.toml"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_file_that_others_may_read_is_refused(path, mode):
    write(path, 'api_keys = ["secret"]', mode)
    with pytest.raises(ValueError, match=f"mode {mode:03o}.*chmod 600"):
        read_keys(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no key"),
        ("api_keys = []", "holds no key"),
        ("api_keys = 'secret'", "not a list of strings"),
        ("api_keys = [3]", "not a list of strings"),
        ("api_keys = ['secret one']", "a key holds a blank"),
        ("apikeys = ['secret']", "'apikeys' is not known"),
        ("api_keys = ['secret'", "not TOML"),
    ],
)
def test_a_file_that_is_none_is_refused(path, text, problem):
    write(path, text)
    with pytest.raises(ValueError, match=problem) as caught:
        read_keys(path)
    assert "secret" not in str(caught.value)


def test_rotation_without_restart(path):
    clock = Clock()
    write(path, 'api_keys = ["old"]')
    file = KeyFile(path, clock)
    write(path, 'api_keys = ["new", "newer"]\nadmin_keys = ["root"]')
    assert file.ring().rights("old") == "api", "within the second"
    clock.now = 1.0
    assert [file.ring().rights(key) for key in ("old", "new", "newer", "root")] == [None, "api", "api", "admin"]


@pytest.mark.parametrize("slip", ["", "api_keys = [", None])
def test_a_slip_locks_nobody_out(path, caplog, slip):
    clock = Clock()
    write(path, 'api_keys = ["old"]')
    file = KeyFile(path, clock)
    if slip is None:
        path.unlink()
    else:
        write(path, slip)
    clock.now = 1.0
    with caplog.at_level(logging.ERROR, "llamafu.server"):
        assert file.ring().rights("old") == "api"
    assert "keys of before" in caplog.text
    clock.now = 2.0
    write(path, 'api_keys = ["new"]')
    assert (file.ring().rights("old"), file.ring().rights("new")) == (None, "api")


def test_a_file_that_is_not_there(path):
    with pytest.raises(FileNotFoundError):
        KeyFile(path)


# -- what a server starts with ------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMAFU_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def rights(guard, key):
    try:
        return guard.demand("api", {"x-api-key": key})
    except AuthenticationError:
        return None


def test_keys_are_made_once_and_shown_once(home):
    told = []
    guard = load_startup_keys(Settings(model="a"), told.append)
    api, admin = (line.split()[-1] for line in told[1:])
    assert (rights(guard, api), rights(guard, admin), rights(guard, "other")) == ("api", "admin", None)
    assert stat.S_IMODE((home / "serve-keys.toml").stat().st_mode) == 0o600
    told.clear()
    again = load_startup_keys(Settings(model="a"), told.append)
    assert (rights(again, api), told) == ("api", [])


def test_given_keys_make_no_file(home):
    guard = load_startup_keys(Settings(model="a", api_key=("k1", "k2"), admin_key=("k3",)), pytest.fail)
    assert [rights(guard, key) for key in ("k1", "k2", "k3", "k4")] == ["api", "api", "admin", None]
    assert not home.exists()


def test_given_keys_and_a_file_together(home, path):
    write(path, 'admin_keys = ["root"]')
    guard = load_startup_keys(Settings(model="a", api_key=("k1",), keys=path), pytest.fail)
    assert [rights(guard, key) for key in ("k1", "root")] == ["api", "admin"]


def test_a_named_file_has_to_be_there(home, path):
    with pytest.raises(FileNotFoundError):
        load_startup_keys(Settings(model="a", keys=path), pytest.fail)


def test_no_auth_makes_no_keys(home):
    assert rights(load_startup_keys(Settings(model="a", no_auth=True), pytest.fail), "") == "admin"
    assert not home.exists()
