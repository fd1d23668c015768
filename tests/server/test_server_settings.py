"""Settings: three places, one declaration each."""

import argparse
from dataclasses import fields
from pathlib import Path

import pytest

from llamafu.server.settings import Settings, add_arguments, is_loopback, load


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "serve.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def parse(*arguments, environment=None):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = vars(parser.parse_args(list(arguments)))
    return load(given, environment or {}, given.pop("config"))


def test_defaults():
    settings = parse("-m", "a.gguf")
    assert (settings.model, settings.host, settings.port, settings.no_auth) == ("a.gguf", "127.0.0.1", 8080, False)
    assert settings == Settings(model="a.gguf")


def test_flags():
    settings = parse(
        *("-m", "a.gguf", "--adapters", "folder", "--lora", "pirate=0.5", "--lora", "my=shout=0", "--lora", "x"),
        *("--api-key", "k1", "--api-key", "k2", "--admin-key", "k3", "--port", "0", "--max-time", "1.5"),
    )
    assert settings.adapters == Path("folder")
    assert settings.lora == (("pirate", 0.5), ("my=shout", 0.0), ("x", 1.0))
    assert (settings.api_key, settings.admin_key, settings.port, settings.max_time) == (("k1", "k2"), ("k3",), 0, 1.5)
    settings = parse("-m", "a.gguf", "--alias", "gpt-4o", "--alias", "mine", "--strict")
    assert (settings.alias, settings.strict) == (("gpt-4o", "mine"), True)


def test_every_setting_has_a_flag():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = parser.format_help()
    assert not [each.name for each in fields(Settings) if f"--{each.name.replace('_', '-')}" not in text]


def test_flags_beat_the_environment_that_beats_the_file(config):
    path = config('model = "file.gguf"\nport = 1\nhost = "::1"\nmax_time = 5\n')
    environment = {"LLAMAFU_SERVE_PORT": "2", "LLAMAFU_SERVE_MAX_TIME": "6", "LLAMAFU_LIB": "x"}
    settings = parse("--config", str(path), "--port", "3", environment=environment)
    assert (settings.model, settings.port, settings.host, settings.max_time) == ("file.gguf", 3, "::1", 6.0)


def test_lists_everywhere(config):
    path = config('model = "a"\nadapters = "d"\napi_key = ["a", "b"]\nno_auth = false\n[lora]\npirate = 0\nshout = 0.5\n')
    settings = parse("--config", str(path), environment={"LLAMAFU_SERVE_ADMIN_KEY": "c, d"})
    assert settings.lora == (("pirate", 0.0), ("shout", 0.5))
    assert (settings.api_key, settings.admin_key) == (("a", "b"), ("c", "d"))


def test_the_range_of_scales_everywhere(config):
    assert parse("-m", "a").scale_range == (0.0, 1.0)
    path = config('model = "a"\nadapters = "d"\nscale_range = [-1, 2]\n')
    assert parse("--config", str(path), "--lora", "x=-0.5").scale_range == (-1.0, 2.0)
    environment = {"LLAMAFU_SERVE_SCALE_RANGE": "0, 3"}
    assert parse("--config", str(path), environment=environment).scale_range == (0.0, 3.0)
    assert parse("--config", str(path), "--scale-range", "-2", "0.5", environment=environment).scale_range == (-2.0, 0.5)


def test_mixes_everywhere(config):
    wanted = (("captain", {"pirate": 0.8, "json": 0.3}), ("x", {"shout": 1.0}))
    flags = ("-m", "a", "--adapters", "d")
    assert parse(*flags, "--mix", "captain=pirate:0.8,json:0.3", "--mix", "x=shout").mix == wanted
    environment = {"LLAMAFU_SERVE_MIX": "captain=pirate:0.8, json:0.3; x=shout;"}
    assert parse(*flags, environment=environment).mix == wanted
    for text in (
        'mix = ["captain=pirate:0.8,json:0.3", "x=shout"]',
        '[mix]\nx = "shout"\n[mix.captain]\npirate = 0.8\njson = 0.3',
    ):
        assert sorted(parse(*flags, "--config", str(config(text))).mix) == sorted(wanted)


def test_no_key_is_shown():
    assert "secret" not in repr(Settings(model="a", api_key=("secret",), admin_key=("secret",)))
    with pytest.raises(ValueError, match="api_key: a key holds a blank") as caught:
        parse("-m", "a", "--api-key", "secret one")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "no model was given"),
        (("-m", ""), "the command line: model: it is empty"),
        (("-m", "a", "--port", "x"), "the command line: port: 'x' is not a whole number from 0 to 65535"),
        (("-m", "a", "--port", "65536"), "from 0 to 65535"),
        (("-m", "a", "--max-time", "nan"), "not a number of seconds above 0"),
        (("-m", "a", "--adapters", "d", "--lora", "x=y"), "not NAME=SCALE"),
        (
            ("-m", "a", "--adapters", "d", "--lora", "x=1.5"),
            "the scale 1.5 of 'x' is not within 0 to 1; scale_range allows others",
        ),
        (("-m", "a", "--adapters", "d", "--lora", "x=nan"), "the scale nan of 'x' is not within 0 to 1"),
        (("-m", "a", "--adapters", "d", "--lora", "x", "--scale-range", "2", "3"), "the scale 1 of 'x' is not within 2 to 3"),
        (("-m", "a", "--scale-range", "1", "0"), "not a pair"),
        (("-m", "a", "--scale-range", "0", "inf"), "not a pair"),
        (("-m", "a", "--scale-range", "0", "x"), "scale_range: 'x' is not a number"),
        (("-m", "a", "--adapters", "d", "--lora", "x", "--lora", "x=0"), "'x' more than once"),
        (("-m", "a", "--lora", "x"), "without adapters"),
        (("-m", "a", "--mix", "x=y"), "mix was given without adapters"),
        (("-m", "a", "--adapters", "d", "--mix", "x"), "'x' is not NAME=ADAPTER:SCALE,ADAPTER:SCALE"),
        (("-m", "a", "--adapters", "d", "--mix", "=y"), "'=y' is not NAME=ADAPTER"),
        (("-m", "a", "--adapters", "d", "--mix", "x=y:z"), "'x=y:z' is not NAME=ADAPTER"),
        (("-m", "a", "--adapters", "d", "--mix", "x=y:nan"), "'x=y:nan' is not NAME=ADAPTER"),
        (("-m", "a", "--adapters", "d", "--mix", "x=y,"), "'x=y,' is not NAME=ADAPTER"),
        (("-m", "a", "--adapters", "d", "--mix", "x=y:1,y:0.5"), "names 'y' twice"),
        (("-m", "a", "--adapters", "d", "--mix", "x=y:2"), "mix: the scale 2 of 'y' is not within 0 to 1"),
        (("-m", "a", "--adapters", "d", "--mix", "x=y", "--mix", "x=z"), "mix names 'x' more than once"),
        (("-m", "d/a.gguf", "--adapters", "d", "--mix", "a=y"), "mix: the name 'a' is the base model's"),
        (("-m", "a", "--adapters", "d", "--alias", "x", "--mix", "x=y"), "mix: the name 'x' is the base model's"),
        (("-m", "a", "--alias", "x", "--alias", "x"), "alias names 'x' more than once"),
        (("-m", "a", "--alias", ""), "alias: it is empty"),
        (("-m", "a", "--no-auth", "--host", "0.0.0.0"), "loopback only"),  # noqa: S104 - it is refused
        (("-m", "a", "--no-auth", "--api-key", "k"), "together with keys"),
        (("-m", "a", "--no-auth", "--allow-origin", "*"), "every web page"),
    ],
)
def test_what_is_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        parse(*arguments)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prot = 1", r"serve.toml: 'prot' is not a setting; did you mean 'port'\?"),
        ("port = [1, 2]", "serve.toml: port was given 2 times"),
        ("scale_range = 1", "scale_range has 1 values; give LOW and HIGH"),
        ("port = 1.5", "not a whole number"),
        ("no_auth = 'perhaps'", "not one of"),
        ("port =", "not TOML"),
    ],
)
def test_a_file_with_a_slip(config, text, problem):
    with pytest.raises(ValueError, match=problem):
        parse("-m", "a", "--config", str(config(text)))


def test_an_environment_with_a_slip():
    with pytest.raises(ValueError, match="the environment: 'prot' is not a setting"):
        parse("-m", "a", environment={"LLAMAFU_SERVE_PROT": "1"})


def test_loopback():
    assert all(map(is_loopback, ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.0.1", "example.com", "", "localhost.example.com"]))  # noqa: S104
