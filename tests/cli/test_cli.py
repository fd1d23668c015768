"""The terminal: exit statuses, one-line errors, `lib list` and `doctor`."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llamafu import __version__
from llamafu._util import paths
from llamafu._util.system import hardware
from llamafu.cli import doctor as doctor_command
from llamafu.cli.main import main
from llamafu.cli.progress import Progress
from llamafu.errors import LlamafuError
from llamafu.libraries import discovery, doctor, verify

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    """Run `python -m llamafu` in a process of its own."""
    return subprocess.run([sys.executable, "-m", "llamafu", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_version_and_help():
    """`python -m llamafu` answers; help lists the commands, and is there for each of them."""
    assert run("--version").stdout == f"llamafu {__version__}\n"
    shown = run("--help")
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in ("lib", "doctor"))
    assert "--json" in run("lib", "list", "--help").stdout
    assert "SOURCE" in run("lib", "build", "--help").stdout


def test_help_is_light():
    """Showing help imports neither NumPy nor gguf."""
    code = "import sys; from llamafu.cli.main import main; main(['--help']); assert not {'numpy', 'gguf'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "line", [[], ["nonsense"], ["doctor", "--nonsense"], ["lib", "build", "--jobs", "0"], ["lib", "list", "--js"], ["--ver"]]
)
def test_usage_errors(line, capsys):
    """A wrong command line is exit status 2 and a message on stderr."""
    assert main(line) == 2
    assert "llamafu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "flag", "meant"),
    [
        (["complete", "-m", "x", "-n", "4", "hi"], "-n", "--max-tokens"),  # and not -ngl 4, as argparse reads it
        (["complete", "-m", "x", "--temp", "0", "hi"], "--temp", "--temperature"),
        (["chat", "-m", "x", "--ctx-size=4096"], "--ctx-size", "--n-ctx"),
        (["serve", "-m", "x", "--lora-modules", "a=b"], "--lora-modules", "--adapters"),
        (["bench", "-m", "x", "--token", "4"], "--token", "--tokens"),
        (["lib", "list", "--jsn"], "--jsn", "--json"),
    ],
)
def test_an_unknown_flag_names_the_one_that_was_meant(line, flag, meant, capsys):
    """Those of llama.cpp and vLLM too; the usage is that of the command."""
    assert main(line) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"usage: llamafu {line[0]}")
    assert told.endswith(f"error: unrecognized argument {flag!r}; did you mean {meant!r}?\n")


def test_a_value_may_stand_right_behind_a_short_flag(capsys):
    """`-mFILE` is argparse's, and stays."""
    assert main(["check", "no.gguf", "-mno-model.gguf"]) == 1
    assert "no-model.gguf: there is no such model file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LlamafuError("first\nsecond"), "llamafu: error: first second\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x.gguf"),
            "llamafu: error: [Errno 2] No such file or directory: 'x.gguf'\n",
        ),
        (KeyError("oops"), "llamafu: error: KeyError: 'oops' (this is a bug; --debug shows where)\n"),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, error, words):
    """What fails is one line and exit status 1; the traceback comes with --debug, wherever it stands."""

    def fail():
        raise error

    monkeypatch.setattr(doctor, "examine", fail)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == words
    for line in (["--debug", "doctor"], ["doctor", "--debug"]):
        assert main(line) == 1
        shown = capsys.readouterr().err
        assert "Traceback" in shown
        assert shown.endswith(words)


def test_interrupt(monkeypatch, capsys):
    """Ctrl-C is exit status 130, with no traceback."""

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == ""


def test_reader_that_leaves(home):
    """A closed pipe ends the command quietly."""
    started = subprocess.Popen(
        [sys.executable, "-m", "llamafu", "lib", "list"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    started.stdout.close()
    said = started.stderr.read()
    started.stderr.close()
    assert started.wait() == 141
    assert said == b""


def test_lib_list(home, real, capsys):
    """Each candidate with its origin and what came of it; `lib` alone means `lib list`."""
    broken = paths.library_dir() / "built" / "libllama.so"
    broken.parent.mkdir(parents=True)
    broken.write_text("no library")
    assert main(["lib", "list", "--json"]) == 0
    rows = {row["path"]: row for row in json.loads(capsys.readouterr().out)}
    good = rows[str(real.path)]
    assert (good["origin"], good["loads"], good["family"], good["used"]) == ("LLAMAFU_LIB", True, real.family, True)
    bad = rows[str(broken)]
    assert (bad["origin"], bad["loads"], bad["cause"]) == ("own copy, built", False, "the file is no shared library")
    assert bad["mend"]
    assert not bad["used"]
    assert main(["lib"]) == 0
    text = capsys.readouterr().out
    assert f"{real.path}\n    from: LLAMAFU_LIB\n    loads: yes" in text
    assert f"{broken}\n    from: own copy, built\n    loads: no: the file is no shared library" in text
    assert text.count("this is the one in use") == 1


def test_lib_list_with_a_broken_choice(home, monkeypatch, capsys):
    """Nothing stands in for what the user named: exit status 1, and said so."""
    monkeypatch.setenv("LLAMAFU_LIB", str(home / "absent.so"))
    assert main(["lib", "list"]) == 1
    assert "LLAMAFU_LIB names a libllama that does not load" in capsys.readouterr().err


def test_progress_line(monkeypatch):
    """One updating line on a terminal, a line for each tenth elsewhere."""
    for is_terminal in (False, True):
        said = io.StringIO()
        said.isatty = lambda is_terminal=is_terminal: is_terminal
        monkeypatch.setattr(sys, "stderr", said)
        with Progress() as progress:
            progress.show("starting")
            for step in range(101):
                progress.show("x" * 500, step / 100)
        lines = said.getvalue().split("\n")
        assert len(lines) == (2 if is_terminal else 12)
        assert all(len(piece) < 500 for piece in said.getvalue().split("\r")) or not is_terminal


def test_doctor(home, real, capsys):
    """One screen, and the same as JSON."""
    assert main(["doctor"]) == 0
    screen = capsys.readouterr().out
    assert all(words in screen for words in (__version__, str(real.path), real.family, str(paths.library_dir()), "to mend"))
    assert len(screen.splitlines()) < 40
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["library"]["path"] == str(real.path)
    assert report["library"]["sha256"] == real.digest
    assert any(device["kind"] == "cpu" for device in report["devices"])
    assert report["healthy"] is True
    assert report["cores"]["usable"] >= 1


def test_doctor_without_a_library(home, monkeypatch, capsys):
    """No usable libllama is exit status 1, and the last line says what to do."""
    monkeypatch.delenv("LLAMAFU_LIB")
    monkeypatch.setattr(discovery, "_sources", lambda _: iter(()))
    assert main(["doctor"]) == 1
    assert "to mend   llamafu lib install" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.undo()
    monkeypatch.setenv("LLAMAFU_LIB", str(home / "absent.so"))
    assert main(["doctor"]) == 1
    assert "to mend   unset LLAMAFU_LIB" in capsys.readouterr().out.splitlines()[-1]


def test_doctor_on_unused_features(home, real, monkeypatch):
    """A CPU that can more than the library uses is said, with the command; a copy compiled here is left alone."""
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx2", "avx512f"}))
    plain = verify.VerifiedLibrary(real.path, real.family, "", (), "CPU : AVX2 = 1 | AVX512 = 0 | ", False, "")
    monkeypatch.setattr(discovery, "find", lambda: plain)
    report = doctor.examine()
    assert (report.cpu_used, report.cpu_unused) == (("AVX2",), ("AVX512",))
    (mend,) = report.mends
    assert mend.command == "llamafu lib build"
    assert "AVX512" in mend.why
    assert not mend.needed
    assert report.healthy
    assert "does not free adapters" in doctor_command._screen(report)
    monkeypatch.setattr(paths, "library_dir", lambda: real.path.parent.parent)
    monkeypatch.setattr(discovery, "BUILT", real.path.parent.name)
    assert doctor.examine().mends == ()


def test_doctor_survives_a_driver_that_crashes(home, real, monkeypatch):
    """Devices are listed in a child: its death is a line of advice."""
    monkeypatch.setattr(doctor.device_list, "list_devices", lambda _: None)
    report = doctor.examine()
    assert report.devices is None
    assert any("drivers crashes" in mend.why for mend in report.mends)
