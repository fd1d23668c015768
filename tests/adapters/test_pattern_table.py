"""Numbers by patterns of names: what PEFT's loop over `re` finds, in time that grows with the names alone."""

import re
import time

from helpers.peft_folders import arrays_of, base_of, check_changes, write_folder
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llamafu.adapters import convert_peft
from llamafu.adapters.peft.pattern_table import PatternTable

names = st.text("ab.1", max_size=6)
patterns = st.one_of(
    names,
    st.builds("{}{}{}".format, st.sampled_from(["", "^", "^^"]), names, st.sampled_from(["", "$", "$$"])),
    names.map(re.escape),
    st.sampled_from([".*", "a|b", r"\d", "a+", "[ab]", r"a\.b", r".\..", "a.b", r"(a|b)\.1", "a?"]),
)


def first_by_re(table, name, default):
    """PEFT's `get_pattern_key`, and the number that it leads to."""
    return next((number for pattern, number in table.items() if re.match(rf"(.*\.)?({pattern})$", name)), default)


@settings(max_examples=200, deadline=None)
@given(st.lists(patterns, max_size=8, unique=True), st.lists(names, min_size=1, max_size=4))
def test_it_finds_what_peft_finds(order, modules):
    numbers = {pattern: number for number, pattern in enumerate(order, 1)}
    table = PatternTable()
    for pattern, number in numbers.items():
        table.add(pattern, number)
    for module in modules:
        assert table.find(module, 0) == first_by_re(numbers, module, 0)


@settings(max_examples=100, deadline=None)
@given(st.text("ab.\\^$1-é ", max_size=6), names)
def test_text_of_any_kind(pattern, module):
    table = PatternTable()
    try:
        table.add(pattern, 1)
    except ValueError:
        assume(False)
    assert table.find(module, 0) == first_by_re({pattern: 1}, module, 0)


def test_a_name_for_each_of_18432_modules():
    """48 layers of 128 experts with three projections, every third name escaped as `export_peft` does.

    Tried one after another they took 52 s; looked up, 2 s where this was written.
    """
    modules = [f"model.layers.{i}.mlp.experts.{j}.{name}_proj" for i in range(48) for j in range(128) for name in "abc"]
    before = time.process_time()
    table = PatternTable()
    for number, module in enumerate(modules, 1):
        table.add(module if number % 3 else re.escape(module), number)
    assert [table.find(module, 0) for module in modules] == list(range(1, len(modules) + 1))
    assert table.size < 2000
    assert time.process_time() - before < 15


def test_the_first_counts_whatever_its_kind(tmp_path):
    """A name behind a pattern that matches too, and one before it."""
    arrays = arrays_of()
    alphas = {
        "model.layers.0.mlp.up_proj": 3,
        r".*\.0\.mlp\..*": 5,
        "model.layers.0.mlp.gate_proj": 7,
        "layers.1.self_attn.q_proj": 11,
        "self_attn.q_proj": 13,
        r"model\.layers\.1\.self_attn\.q_proj": 17,
    }
    folder = write_folder(tmp_path / "folder", arrays, alpha_pattern=alphas)
    convert_peft(folder, tmp_path / "out.gguf", base=base_of(), dtype="f32")
    check_changes(tmp_path / "out.gguf", arrays, lambda module: first_by_re(alphas, module, 8) / 4)


def test_patterns_with_groups_for_each_of_80_layers():
    """160 of them against 560 names took 15 s where each was followed anew, below 2 s with what the names share."""
    leaves = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"]
    modules = [f"model.layers.{i}.{leaf}" for i in range(80) for leaf in leaves]
    table = PatternTable()
    before = time.process_time()
    for i in range(80):
        table.add(f"layers.{i}.self_attn.(q|k)_proj", 2 * i)
        table.add(f"layers.{i}.mlp.*", 2 * i + 1)
    found = [table.find(module, -1) for module in modules]
    assert found == [place for i in range(80) for place in (2 * i, 2 * i, -1, -1, 2 * i + 1, 2 * i + 1)]
    assert time.process_time() - before < 5
