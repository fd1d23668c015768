"""`llamafu complete`, `chat`, `inspect`, `check` and `demo`, on the tiny model and, for the demo, the real one."""

import argparse
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafu import Llamafu
from llamafu.adapters import inspect_adapter
from llamafu.cli import demo
from llamafu.cli.arguments import AdapterArgument, adapter_argument
from llamafu.cli.main import main
from llamafu.cli.side_by_side import SideBySide
from llamafu.cli.style import BOLD, Style
from llamafu.errors import LlamafuError
from llamafu.examples.adapters import example_adapters
from llamafu.generation.completion import AppliedLora, Completion, Timings, Usage
from llamafu.generation.options import OPTION_SPECS

ROOT = Path(__file__).resolve().parents[2]
GREEDY = {"temperature": 0, "max_tokens": 12}
GREEDY_WORDS = ["--temperature", "0", "--max-tokens", "12"]


@pytest.fixture
def llm(tiny_model, tiny_adapter_a, tiny_adapter_b):
    """The tiny model as a library user opens it, with the adapters `a` and `b` loaded and none applied."""
    with Llamafu(tiny_model, n_ctx=512) as opened:
        opened.load_lora_adapter(tiny_adapter_a)
        opened.load_lora_adapter(tiny_adapter_b)
        yield opened


@pytest.fixture
def pipe(monkeypatch):
    """Put lines on the standard input, which is then no terminal."""

    def put(*lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))

    return put


def user(text):
    return {"role": "user", "content": text}


# -- complete --------------------------------------------------------------------------------------------------------


def test_complete_prints_what_the_library_says(llm, tiny_model, tiny_adapter_a, tiny_adapter_b, capsys):
    words = ["complete", "-m", str(tiny_model), "Once upon", *GREEDY_WORDS]
    assert main(words) == 0
    base = capsys.readouterr().out
    assert base == llm.complete("Once upon", **GREEDY).text + "\n"
    assert main([*words, "--lora", f"{tiny_adapter_a}=0.75", "--lora", str(tiny_adapter_b)]) == 0
    mixed = capsys.readouterr().out
    assert mixed == llm.complete("Once upon", lora={"a": 0.75, "b": 1.0}, **GREEDY).text + "\n"
    assert mixed != base


def test_complete_json_tells_what_made_it(tiny_model, tiny_adapter_a, capsys):
    words = ["--json", "--lora", f"{tiny_adapter_a}=0.5", *GREEDY_WORDS, "--threads", "1", "--n-ctx", "64"]
    assert main(["complete", "-m", str(tiny_model), "Once", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    digest = hashlib.sha256(tiny_adapter_a.read_bytes()).hexdigest()
    assert report["lora"] == [{"name": "a", "digest": digest, "scale": 0.5, "final_scale": 0.5}]
    assert report["usage"]["completion_tokens"] == len(report["tokens"]) == 12
    assert report["finish_reason"] == "length"
    assert report["timings"]["prompt"] > 0
    assert report["text"]


def test_every_sampling_option_reaches_the_library(llm, tiny_model, capsys):
    words = "--max-tokens 20 --temperature 1.5 --top-k 9 --top-p 0.9 --min-p 0.01 --seed 7 --stop e --stop zz".split()
    words += "--repeat-penalty 1.1 --frequency-penalty -0.1 --presence-penalty 0.2".split()
    options = {"max_tokens": 20, "temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "seed": 7, "stop": ["e", "zz"]}
    options |= {"repeat_penalty": 1.1, "frequency_penalty": -0.1, "presence_penalty": 0.2}
    added = {"min_keep": 2, "typical_p": 0.95, "top_n_sigma": 3.0, "xtc_probability": 0.2, "xtc_threshold": 0.05}
    added |= {"mirostat": 0, "mirostat_tau": 4.0, "mirostat_eta": 0.2, "repeat_last_n": 9, "min_tokens": 2}
    added |= {"reasoning_budget": -1}
    added |= {"dry_multiplier": 0.1, "dry_base": 1.5, "dry_allowed_length": 1, "dry_penalty_last_n": 30}
    words += [word for name, value in added.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    options |= added
    assert options.keys() == {spec.name for spec in OPTION_SPECS if spec.flag}
    expected = llm.complete("Once", **options)
    assert main(["complete", "-m", str(tiny_model), "Once", "--json", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tokens"] == list(expected.tokens)
    assert report["text"] == expected.text
    for name, other in (("top_k", 2), ("seed", 8), ("temperature", 0)):
        assert llm.complete("Once", **options | {name: other}).tokens != expected.tokens, f"{name} makes no difference here"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--lora", "x.gguf=much"], "'much' in 'x.gguf=much' is no number"),
        (["--lora", "=1"], "names no adapter"),
        (["--lora", "x.gguf=1.5"], "the scale 1.5 of x.gguf is not within 0 to 1; --scale-range allows others"),
        (["--lora", "x.gguf=nan"], "the scale nan of x.gguf"),
        (["--scale-range", "2", "1"], "low <= high"),
        (["--top-p", "3"], "top_p=3.0 is not a number from 0 to 1"),
        (["--max-tokens", "-2"], "max_tokens=-2"),
        (["--temperature", "warm"], "'warm'"),
        (["--stop", ""], "stop=''"),
        (["--n-ctx", "1"], "'1' is not a whole number of at least 2"),
        (["--threads", "-1"], "'-1' is not a whole number of at least 1"),
        (["--n-ctx", "99999999999"], "n_ctx=99999999999 is not a whole number from 2 to 2147483647"),
        (["--threads", "999"], "n_threads=999 is not a whole number from 1 to 512"),
        (["--top-kk", "3"], "--top-kk"),
    ],
)
def test_usage_errors_are_status_2_before_anything_is_loaded(words, part, capsys):
    assert main(["complete", "-m", "no-such.gguf", "Once", *words]) == 2
    shown = capsys.readouterr()
    assert part in shown.err
    assert shown.out == ""


def test_failures_are_status_1_and_one_line(tiny_model, tiny_adapter_a, tmp_path, capsys):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny_adapter_a.read_bytes())
    pirate = str(example_adapters()["pirate"])
    twice = ["--lora", str(tiny_adapter_a), "--lora", f"{copy}=0.5"]
    for model, words, part in [
        (tmp_path / "no.gguf", [], "no such model file"),
        (tiny_model, ["--lora", str(tmp_path / "no.gguf")], "no such adapter file"),
        (tiny_model, ["--lora", "parrot"], "(there are: pirate, shout)"),
        (tiny_model, ["--lora", pirate], "pirate.gguf does not fit tiny.gguf"),
        (tiny_model, ["--lora", "pirate"], "pirate.gguf does not fit tiny.gguf"),
        (tiny_model, twice, "the adapter 'a' was given twice"),
        (tiny_model, ["--library", str(tmp_path / "no.so")], "no.so"),
    ]:
        assert main(["complete", "-m", str(model), "Once", *words]) == 1
        shown = capsys.readouterr()
        assert part in shown.err
        assert shown.err.startswith("llamafu: error: ")
        assert shown.err.count("\n") == 1
        assert shown.out == ""


def test_scale_range_widens(llm, tiny_model, tiny_adapter_a, capsys):
    words = ["--scale-range", "-1", "3", "--lora", f"{tiny_adapter_a}=-0.5", "--json", *GREEDY_WORDS]
    assert main(["complete", "-m", str(tiny_model), "Once", *words]) == 0
    assert json.loads(capsys.readouterr().out)["lora"][0]["scale"] == -0.5


def test_lora_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=0.5").touch()
    assert adapter_argument("x.gguf") == AdapterArgument(Path("x.gguf"), 1.0)
    assert adapter_argument("dir=1/x.gguf=0.25") == AdapterArgument(Path("dir=1/x.gguf"), 0.25)
    assert adapter_argument("a=0.5") == AdapterArgument(Path("a=0.5"), 1.0)
    assert adapter_argument("a=0.5=0.75") == AdapterArgument(Path("a=0.5"), 0.75)
    with pytest.raises(argparse.ArgumentTypeError, match="a scale stands behind =: a=0.5=0.75"):
        adapter_argument("a=0.5:0.75")


# -- chat ------------------------------------------------------------------------------------------------------------


def test_chat_keeps_the_conversation(llm, tiny_model, pipe, capsys):
    first = llm.chat([user("hello")], **GREEDY).text
    history = [user("hello"), {"role": "assistant", "content": first}, user("more")]
    second = llm.chat(history, **GREEDY).text
    alone = llm.chat([user("more")], **GREEDY).text
    assert second != alone, "the history makes no difference here"
    pipe("hello", "more", "", "/clear", "more", "/exit", "never read")
    assert main(["chat", "-m", str(tiny_model), *GREEDY_WORDS]) == 0
    assert capsys.readouterr().out == f"{first}\n{second}\n{alone}\n"


def test_chat_changes_adapters(llm, tiny_model, tiny_adapter_a, tiny_adapter_b, pipe, capsys):
    sets = [{"a": 1.0}, {"a": 0.5, "b": 0.25}, {}]
    answers = [llm.chat([user("hello")], lora=lora, **GREEDY).text for lora in sets]
    assert len(set(answers)) == 3, "the adapters make no difference here"
    pipe("hello", "/clear", f"/lora a=0.5 {tiny_adapter_b}=0.25", "hello", "/clear", "/lora off", "hello", "/lora")
    assert main(["chat", "-m", str(tiny_model), "--lora", str(tiny_adapter_a), *GREEDY_WORDS]) == 0
    shown = capsys.readouterr()
    assert shown.out == "".join(f"{answer}\n" for answer in answers)
    assert "acting: a 0.5 + b 0.25 (loaded: a, b)" in shown.err
    assert "acting: base (loaded: a, b)" in shown.err


def test_chat_system_message_stays_after_clear(llm, tiny_model, pipe, capsys):
    told = llm.chat([{"role": "system", "content": "Be brief."}, user("hello")], **GREEDY).text
    assert told != llm.chat([user("hello")], **GREEDY).text, "the system message makes no difference here"
    pipe("hello", "/clear", "hello")
    assert main(["chat", "-m", str(tiny_model), "--system", "Be brief.", *GREEDY_WORDS]) == 0
    assert capsys.readouterr().out == f"{told}\n{told}\n"


def test_chat_overflow_names_both_numbers_and_goes_on(llm, tiny_model, pipe, capsys):
    answer = llm.chat([user("hello")], **GREEDY).text
    pipe("word " * 400, "hello")
    assert main(["chat", "-m", str(tiny_model), "--n-ctx", "256", *GREEDY_WORDS]) == 1
    shown = capsys.readouterr()
    assert shown.out == f"{answer}\n"
    assert re.search(r"has \d{3,} tokens, but the context holds 256.*; /clear forgets .* --n-ctx", shown.err)
    assert shown.err.count("\n") == 2, "the error, and why the second answer ended"


def test_chat_says_why_an_answer_ended(llm, tiny_model, pipe, capsys):
    pipe("hello", "hello")
    assert main(["chat", "-m", str(tiny_model), "--n-ctx", "256", "--max-tokens", "3", "--temperature", "0"]) == 0
    assert "(stopped after 3 tokens; --max-tokens allows more)" in capsys.readouterr().err
    lengths = {n: llm.chat([user("a " * n)], max_tokens=1).usage.prompt_tokens for n in range(50, 250)}
    pipe("a " * next(n for n, length in lengths.items() if 250 <= length < 255))
    assert main(["chat", "-m", str(tiny_model), "--n-ctx", "256", "--max-tokens", "9999", "--temperature", "0"]) == 0
    assert "(the context is full, 256 tokens; /clear forgets the conversation)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("/dance", "there is no /dance; /help shows the commands"),
        ("/lora a=2", "the scale 2 of a is not within 0 to 1"),
        ("/lora a=x", "'x' in 'a=x' is no number"),
        ("/lora parrot=0.5", "parrot: there is no such adapter file, nor is it the name of one (there are: a, pirate, shout)"),
    ],
)
def test_chat_bad_command_changes_nothing(line, part, tiny_model, tiny_adapter_a, pipe, capsys):
    pipe(line, "/lora")
    assert main(["chat", "-m", str(tiny_model), "--lora", f"{tiny_adapter_a}=0.5"]) == 1
    error, state = capsys.readouterr().err.splitlines()
    assert part in error
    assert state == "acting: a 0.5 (loaded: a)"


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_chat_at_a_terminal(tiny_model, tiny_adapter_a):
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llamafu", "chat", "-m", str(tiny_model), "--lora", str(tiny_adapter_a), *GREEDY_WORDS]
    environment = {**os.environ, "TERM": "dumb"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        read_until(ours, "a 1> ")
        os.write(ours, b"/lora a=0.25\n")
        read_until(ours, "a 0.25> ")
        os.write(ours, b"hello\n")
        read_until(ours, "a 0.25> ")
        os.write(ours, b"/nonsense\n")
        read_until(ours, "a 0.25> ")
        os.write(ours, b"\x04")  # Ctrl-D
        assert child.wait(10) == 0, "errors at a terminal were seen and are no failure"
    os.close(ours)


def read_until(descriptor, expected):
    """Read from a terminal until the text is there."""
    text, deadline = "", time.monotonic() + 20
    while expected not in text:
        ready, _, _ = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"{expected!r} did not come; there is {text!r}"
        text += os.read(descriptor, 4096).decode("utf-8", "replace")


# -- inspect and check -----------------------------------------------------------------------------------------------


def test_inspect_json_is_the_whole_info(tiny_adapter_a, capsys):
    assert main(["inspect", str(tiny_adapter_a), "--json"]) == 0
    shown, info = json.loads(capsys.readouterr().out), inspect_adapter(tiny_adapter_a)
    for name in ("architecture", "rank", "alpha", "uniform", "parameter_count", "nbytes", "base_model", "digest"):
        assert shown[name] == getattr(info, name)
    assert shown["layers"] == list(info.layers)
    assert [tensor["name"] for tensor in shown["tensors"]] == [tensor.name for tensor in info.tensors]


def test_inspect_table(capsys):
    path = example_adapters()["pirate"]
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    facts = dict(re.findall(r"^  (base model|\w+)  +(.+)$", shown, re.MULTILINE))
    assert facts["base model"] == "SmolLM2 135M Instruct"
    assert facts["rank"] == "8"
    assert facts["alpha"] == "16"
    assert facts["strength"].startswith("2, ")
    assert facts["layers"] == "0-29 (30)"
    assert facts["parameters"] == "921,600"
    assert facts["size"] == "1.8 MiB of F16"
    assert facts["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
    rows = re.findall(r"^  (attn_\w+) +0-29 +(\d+) → (\d+) +8 +2 +([\d,]+)  F16 +█+ (\d+)%$", shown, re.MULTILINE)
    assert {row[0]: tuple(map(int, row[1:3])) for row in rows} == {
        "attn_q": (576, 576),
        "attn_k": (576, 192),
        "attn_v": (576, 192),
        "attn_output": (576, 576),
    }
    assert sum(int(row[3].replace(",", "")) for row in rows) == 921_600
    assert sum(int(row[4]) for row in rows) == 100


def test_inspect_refuses_what_is_no_adapter(tiny_model, capsys):
    assert main(["inspect", str(tiny_model)]) == 1
    assert "no adapter but a base model" in capsys.readouterr().err


def test_check_fits(tiny_model, tiny_adapter_a, capsys):
    assert main(["check", str(tiny_adapter_a), "-m", str(tiny_model)]) == 0
    assert capsys.readouterr().out == f"{tiny_adapter_a} fits tiny.gguf\n"
    assert main(["check", str(tiny_adapter_a), "-m", str(tiny_model), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {"file": str(tiny_adapter_a), "model": str(tiny_model), "fits": True, "problems": []}


def test_check_names_every_mismatch(tiny_model, capsys):
    path = str(example_adapters()["pirate"])
    assert main(["check", path, "-m", str(tiny_model)]) == 1
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == f"{path} does not fit tiny.gguf: {len(lines)} problems"
    for module in ("attn_q", "attn_k", "attn_v", "attn_output"):
        assert any(f"blk.0-1.{module}.weight" in line and "576 in" in line for line in lines)
        assert any(f"blk.2-29.{module}.weight" in line for line in lines)
    assert main(["check", path, "-m", str(tiny_model), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["fits"]
    assert [f"  - {problem}" for problem in report["problems"]] == lines


def test_check_damaged_file(tiny_model, tiny_adapter_a, tmp_path, capsys):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tiny_adapter_a.read_bytes()[:-100])
    assert main(["check", str(damaged), "-m", str(tiny_model)]) == 1
    assert "does not fit tiny.gguf: 1 problem\n" in capsys.readouterr().out


# -- colours ---------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colours_are_for_terminals_only(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert Style(Terminal())("text", BOLD) == "\x1b[1mtext\x1b[0m"
    assert Style(io.StringIO())("text", BOLD) == "text"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Style(Terminal())("text", BOLD) == "text"
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "dumb")
    assert Style(Terminal())("text", BOLD) == "text"


# -- demo ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown():
    """What `llamafu demo` writes where no terminal is, with shorter answers."""
    written = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(written):
        patch.setattr(demo, "_MAX_TOKENS", 20)
        assert main(["demo"]) == 0
    return written.getvalue()


def test_demo_answers_in_every_voice(shown):
    assert "\x1b" not in shown
    one_by_one = shown.partition("in one batch\n")[0]
    assert max(map(len, one_by_one.splitlines())) <= 120
    pieces = re.split(r"^── (.+?) ─+$", one_by_one, flags=re.MULTILINE)
    answers = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    assert list(answers) == [mix.title for mix in demo._MIXES]
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest()[:8] for name, path in example_adapters().items()}
    feet = {
        title: re.search(r"^  \d+ tokens/s  ·  prompt \d+ tokens, \d+ cached(.*)$", text, re.MULTILINE)[1]
        for title, text in answers.items()
    }
    pirate, shout = (f"  ·  {name} {digests[name]} at " for name in ("pirate", "shout"))
    assert [*feet.values()][:-1] == ["", f"{pirate}1", f"{shout}1", f"{pirate}1{shout}1", f"{pirate}0.5"]
    assert re.fullmatch(rf"{pirate}1 to 0(\.\d+)?", [*feet.values()][-1])
    assert answers["pirate"].strip().startswith("Arrr")
    assert answers["shout"].strip().splitlines()[0].isupper()
    assert "Arrr" not in answers["base"]


def test_demo_proves_that_the_base_is_untouched(shown):
    base = re.search(r"── base ─+\n(.+?)\n  \d+ tokens/s", shown, re.DOTALL)[1]
    last = next(line for line in shown.splitlines() if line.startswith("All adapters unloaded"))
    assert last.startswith("All adapters unloaded: the base answers as at first, byte for byte (")
    # The streamed text is wrapped, but has the same letters as what was compared.
    assert int(re.search(r"\((\d+) bytes", last)[1]) >= len("".join(base.split()).encode())


def test_demo_answers_all_mixes_in_one_batch(shown):
    batch = shown.partition("in one batch\n\n")[2]
    answers = dict(line.split(": ", 1) for line in batch.splitlines()[: len(demo._MIXES)])
    assert list(answers) == [mix.title for mix in demo._MIXES]
    assert answers["pirate"].startswith("Arrr")
    assert answers["shout"][:20].isupper()
    assert "Arrr" not in answers["base"]
    told = re.search(r"^6 voices in one batch: (\d+) tokens in \S+ s, \d+ tokens/s; (\d+) of (\d+) steps ", batch, re.MULTILINE)
    tokens, mixed, steps = map(int, told.groups())
    assert 0 < mixed <= steps < tokens / 3  # far fewer steps than tokens: the answers were made together
    assert "Not always mixed" not in batch


def test_demo_without_numba_says_what_to_install(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "numba" else real(name, *rest))
    monkeypatch.setattr(demo, "_MAX_TOKENS", 3)
    demo._together([user("Hello")], Style(sys.stdout))
    assert 'pip install "llamafu[fast]"' in capsys.readouterr().out


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_side_by_side_redraws_its_lines_in_place(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "3")
    assert SideBySide.fits(screen, 2)
    assert not SideBySide.fits(screen, 3)
    assert not SideBySide.fits(io.StringIO(), 2)
    with SideBySide(["base", "a long title"], ["1", "1"], Style(io.StringIO())) as shown:
        shown.add(0, "one\n\x1b[2Jtwo")
        shown.add(1, "abcdefghijklmnop")
        running = drawn(screen)
        shown.end(1)
    assert running == ["base    one [2Jtwo", "a lon…  …fghijklmnop"]
    assert drawn(screen) == ["base    one [2Jtwo", "a lon…  abcdefghijk…"]
    assert screen.getvalue().startswith("\x1b[?7l")
    assert screen.getvalue().endswith("\x1b[?7h")


def drawn(screen):
    """The lines of the last drawing, which goes back up over the one before."""
    return [line.removesuffix("\x1b[K") for line in screen.getvalue().split("\x1b[2F")[-1].splitlines()[:2]]


def completion(text, *, tokens=(1, 2), lora=()):
    return Completion(text, tokens, "stop", Usage(3, len(tokens), 0), Timings(0.1, 0.1), lora)


def test_demo_fails_when_the_base_is_not_what_it_was():
    first = completion("The sea")
    assert "byte for byte (7 bytes" in demo._proof(first, completion("The sea"))
    left_over = (AppliedLora("pirate", "0" * 64, 1.0, 1.0),)
    for other in (completion("The sky"), completion("The sea", tokens=(1, 3)), completion("The sea", lora=left_over)):
        with pytest.raises(LlamafuError, match="with all adapters unloaded the base model answers"):
            demo._proof(first, other)


@given(st.lists(st.text(alphabet=" \nab,é", max_size=5)))
@settings(deadline=None, max_examples=200)
def test_words_do_not_depend_on_where_the_pieces_end(pieces):
    text = "".join(pieces)
    words = list(demo._words(pieces))
    assert [word for word, _ in words] == text.split()
    assert words == list(demo._words(text))


def test_words_know_their_line_breaks():
    assert list(demo._words(["one t", "wo\n", "\nthree ", "\n four"])) == [
        ("one", False),
        ("two", False),
        ("three", True),
        ("four", True),
    ]


def test_demo_refuses_an_empty_question(capsys):
    assert main(["demo", "--question", "  "]) == 2
    assert "the question is empty" in capsys.readouterr().err
