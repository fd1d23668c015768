"""`llamafu chat --tools`: calls are shown and run, and their results sent back, for a bounded number of rounds."""

import io
import json
import sys

import pytest
from helpers.scripted import saying

from llamafu import Llamafu
from llamafu.cli.main import main

TOOLS = '''
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b

def fail():
    """Always fails."""
    raise ValueError("no luck")

def long():
    return "x" * 600
'''


def calling(name, arguments="{}"):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.fixture
def chat(tiny_model, tmp_path, monkeypatch, capsys):
    """Talk with a model that says what it is told to; return status, output, remarks, and the messages of every answer."""
    (tmp_path / "tools.py").write_text(TOOLS, "utf-8")
    seen = []
    original = Llamafu.stream_chat

    def spy(self, messages, **options):
        seen.append(list(messages))
        return original(self, messages, **options)

    def run(lines, *texts, flags=()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr(Llamafu, "stream_chat", spy)
        words = ["chat", "-m", str(tiny_model), "--tools", str(tmp_path / "tools.py"), "--n-ctx", "4096", *flags]
        with saying(monkeypatch, *texts):
            status = main(words)
        shown = capsys.readouterr()
        return status, shown.out, shown.err, seen

    return run


def test_a_call_is_run_and_its_result_sent_back(chat):
    status, out, err, seen = chat(
        ["two and three?", "thanks"], f"I add.{calling('add', json.dumps({'a': 2, 'b': 3}))}", "Five.", "Bye."
    )
    assert (status, out) == (0, "I add.\nFive.\nBye.\n")
    assert 'add({"a": 2, "b": 3})\n= 5\n' in err
    user, assistant, tool = seen[1]
    assert user == {"role": "user", "content": "two and three?"}
    (made,) = assistant["tool_calls"]
    assert made["function"] == {"name": "add", "arguments": '{"a": 2, "b": 3}'}
    assert tool == {"role": "tool", "tool_call_id": made["id"], "name": "add", "content": "5"}
    assert [message["role"] for message in seen[2]] == ["user", "assistant", "tool", "assistant", "user"]


def test_errors_are_results(chat):
    calls = f"{calling('fail')}\n{calling('gone')}\n{calling('add', json.dumps({'a': 'x'}))}\n{calling('long')}"
    status, out, err, seen = chat(["go"], calls, "Sorry.")
    assert (status, out) == (0, "Sorry.\n")
    results = [message["content"] for message in seen[1] if message["role"] == "tool"]
    assert results[:3] == [
        "error: ValueError: no luck",
        "error: there is no tool 'gone' (tools: add, fail, long)",
        "error: a is 'x'; give integer",
    ]
    assert results[3] == "x" * 600
    assert f"= {'x' * 400}...\n" in err
    assert "= error: ValueError: no luck\n" in err


def test_a_model_that_never_stops_calling_is_stopped(chat):
    status, out, err, seen = chat(["go"], calling("add", '{"a": 1}'))
    assert (status, out, len(seen)) == (0, "", 8)
    assert "(stopped after 8 answers that called tools)" in err
    assert err.count("= 2\n") == 8


def test_a_call_that_was_cut_is_not_run(chat):
    status, _, err, _ = chat(["go"], calling("add", '{"a": 1}'), flags=("--max-tokens", "30"))
    assert status == 0
    assert "= 2" not in err
    assert "(stopped after 30 tokens; --max-tokens allows more)" in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "tools.py: there is no such file"),
        ("def f(x: bytes): pass", "tools.py: f: the parameter 'x'"),
        ("x", "NameError"),
    ],
)
def test_a_file_without_tools_is_one_line(tmp_path, tiny_model, capsys, text, says):
    path = tmp_path / "tools.py"
    if text is not None:
        path.write_text(text, "utf-8")
    assert main(["chat", "-m", str(tiny_model), "--tools", str(path)]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
