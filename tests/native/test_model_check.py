"""A model file that was never opened is opened in a process of its own first, and what libllama says is in the message."""

from __future__ import annotations

import struct

import pytest
from helpers.damaged_models import Damage

from llamafu import Llamafu
from llamafu._native import model_check
from llamafu._native.checks import explain
from llamafu._native.library import open_library
from llamafu._native.model_check import check_model
from llamafu.adapters.gguf.base_model import read_base, read_model
from llamafu.errors import ModelLoadError
from llamafu.libraries.discovery import find


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Every child process that was started to open a model; nothing is remembered from before."""
    monkeypatch.setattr("llamafu._util.paths.cache_dir", lambda: tmp_path / "cache")
    started = []
    really = model_check.run_child

    def run(command):
        started.append(command)
        return really(command)

    monkeypatch.setattr(model_check, "run_child", run)
    return started


@pytest.fixture
def sound(tiny_dir):
    return (tiny_dir / "tiny.gguf").read_bytes()


def write(tmp_path, data, name="model.gguf"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def typed(data, number):
    """The model with another ggml type on one of its weights, of the same width where that is I32."""
    name = b"blk.1.attn_output.weight"
    place = data.index(name) + len(name) + 20
    return data[:place] + struct.pack("<I", number) + data[place + 4 :]


def replaced(data, old, new):
    assert data.count(old) == 1
    return data.replace(old, new)


@pytest.mark.usefixtures("runs")
def test_a_vocabulary_that_holds_one_text_twice_is_refused_in_the_librarys_words(tmp_path, sound):
    twice = replaced(sound, struct.pack("<Q", 4) + "Ġin".encode(), struct.pack("<Q", 4) + "Ġof".encode())
    with pytest.raises(
        ModelLoadError, match=r"opening it ended a process \(signal 6, SIGABRT\).*token_to_id\.size\(\)\) failed"
    ):
        Llamafu(write(tmp_path, twice))


@pytest.mark.usefixtures("runs")
def test_what_only_computing_meets_is_met_in_the_child(tmp_path, sound):
    path = write(tmp_path, typed(sound, 26))
    proven = find(None)
    with pytest.raises(ModelLoadError, match=r"computing with it ended a process \(signal"):
        check_model(open_library(proven.path, proven.family), path)


def test_the_second_opening_starts_no_process_and_a_changed_file_is_new(runs, tmp_path, sound):
    path = write(tmp_path, sound)
    for _ in range(2):
        Llamafu(path, n_ctx=64).close()
    assert len(runs) == 1
    path.write_bytes(sound.replace(b"tiny", b"TINY", 1))
    Llamafu(path, n_ctx=64).close()
    assert len(runs) == 2


def test_a_damaged_record_costs_one_process_more(runs, tmp_path, sound):
    path = write(tmp_path, sound)
    Llamafu(path, n_ctx=64).close()
    (record,) = (tmp_path / "cache" / "opened").iterdir()
    record.write_text("{}")
    Llamafu(path, n_ctx=64).close()
    assert len(runs) == 2


def test_the_oldest_results_are_removed_once_there_are_many(runs, monkeypatch, tmp_path, sound):
    monkeypatch.setattr("llamafu._util.kept_results._MOST", 4)
    library = open_library(find(None).path, find(None).family)
    models = [write(tmp_path, sound, f"{number}.gguf") for number in range(5)]
    for path in models:
        check_model(library, path)
    kept = sorted((tmp_path / "cache" / "opened").iterdir())
    assert len(kept) == 2
    assert len(runs) == 5
    check_model(library, models[-1])
    assert len(runs) == 5
    check_model(library, models[0])
    assert len(runs) == 6


def test_a_file_cut_at_three_quarters_has_the_librarys_own_lines(tmp_path, sound):
    path = write(tmp_path, sound[: len(sound) * 3 // 4])
    with pytest.raises(ModelLoadError, match="libllama says: .*not within the file bounds, .*incomplete"):
        Llamafu(path)


def test_a_message_has_each_error_line_once_and_three_at_most():
    proven = find(None)
    library = open_library(proven.path, proven.family)
    library.logs.forget_errors()
    for line in ("one", "two", "one", "three", "four"):
        library.logs._receive(4, library.ffi.new("char[]", f"{line}\n".encode()), None)
    library.logs._receive(3, library.ffi.new("char[]", b"a warning\n"), None)
    assert explain(library, "it failed") == "it failed; libllama says: one; two; three"
    assert explain(library, "it failed") == "it failed"


def test_parts_of_a_split_model_say_what_to_do(tmp_path, sound):
    second = write(tmp_path, sound, "big-00002-of-00003.gguf")
    with pytest.raises(ModelLoadError, match=r"is part 2 of 3 of a split model; open its first part, big-00001-of-00003\.gguf"):
        read_model(second)
    first = write(tmp_path, sound, "big-00001-of-00003.gguf")
    with pytest.raises(FileNotFoundError, match=r"split into 3 parts, and big-00003-of-00003\.gguf is not there; put it into"):
        read_base(first)


@pytest.mark.parametrize("number", [24, 25, 26, 27])
def test_weights_of_whole_numbers_are_refused_before_the_library_sees_them(tmp_path, sound, number):
    with pytest.raises(ModelLoadError, match=r"'blk\.1\.attn_output\.weight' is of type I\d+, and weights are fractions"):
        read_base(write(tmp_path, typed(sound, number)))


def test_the_damage_of_the_fuzz_is_the_same_everywhere_and_of_many_kinds(sound):
    damage = Damage(sound)
    assert damage.file(7) == damage.file(7)
    assert len({damage.file(number) for number in range(50)}) > 45
