"""`scripts/dev.py`: what it says when something is missing, and which status it returns."""

import importlib.util
import sys
import sysconfig
from pathlib import Path

import dev
import pytest

JOBS = set(dev.JOBS)


@pytest.fixture
def ran(monkeypatch):
    """Programs that were run, with the status that each is to return; nothing is set up and nothing really runs."""
    statuses, commands = {}, []

    def run(*command):
        commands.append(command)
        return next((status for word, status in statuses.items() if word in command), 0)

    monkeypatch.setattr(dev, "set_up", lambda extras: None)
    monkeypatch.setattr(dev, "run", run)
    return statuses, commands


def test_make_has_the_same_jobs(capsys):
    makefile = (dev.ROOT / "Makefile").read_text(encoding="utf-8")
    phony = next(line for line in makefile.splitlines() if line.startswith(".PHONY:"))
    assert set(phony.split()[1:]) == JOBS
    assert dev.main([]) == 0
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()} == JOBS


def test_unknown_job(capsys):
    assert dev.main(["tset"]) == 1
    assert "there is no job 'tset'; there are: demo, test" in capsys.readouterr().err


def test_test_runs_the_tests_whatever_lint_says_and_returns_the_first_failure(ran):
    statuses, commands = ran
    assert dev.main(["test", "-k", "name"]) == 0
    assert commands[-1] == ("python", "-m", "pytest", *dev.SIDE_BY_SIDE, "-k", "name")
    assert len(commands) == len(dev.LINT) + 2
    statuses["pytest"] = 2
    assert dev.main(["test"]) == 2
    statuses["mypy"] = 3
    assert dev.main(["test"]) == 3
    assert commands[-1][:3] == ("python", "-m", "pytest")
    assert dev.main(["lint"]) == 3


def test_demo_installs_no_more_than_it_needs(ran, monkeypatch):
    wanted = []
    monkeypatch.setattr(dev, "set_up", wanted.append)
    dev.main(["demo"])
    dev.main(["test"])
    dev.main(["test-peers"])
    assert wanted == [["prebuilt", "fast"], ["prebuilt", "test"], ["prebuilt", "test", "peers"]]


def test_set_up_is_done_once(monkeypatch, tmp_path):
    installed = []
    monkeypatch.setattr(dev, "VENV", tmp_path)
    monkeypatch.setattr(dev, "PYTHON", tmp_path / "python")
    monkeypatch.setattr(dev, "make_venv", (tmp_path / "python").touch)
    monkeypatch.setattr(dev, "install", lambda requirements, what: installed.append(what))
    dev.set_up(["prebuilt"])
    dev.set_up(["prebuilt"])
    assert installed == ["the build tools", "Llamafu with prebuilt"]
    dev.set_up(["prebuilt", "test"])
    dev.set_up(["prebuilt"])
    assert installed[2:] == ["the build tools", "Llamafu with prebuilt, test"]
    monkeypatch.setattr(dev, "sources_digest", lambda: "others")
    dev.set_up(["prebuilt"])
    assert installed[4:] == ["the build tools", "Llamafu with prebuilt"]


def test_missing_ensurepip_names_what_to_install(monkeypatch, tmp_path, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(dev, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(dev, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else real(name))
    assert dev.main(["demo"]) == 1
    error = capsys.readouterr().err
    assert f"has no ensurepip; install it: apt install python3.{sys.version_info.minor}-venv" in error
    assert error.count("\n") == 1


def test_a_failing_pip_is_one_line_with_its_status(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(dev, "PYTHON", sys.executable)
    with pytest.raises(dev.SetupError, match="failed with status 1, see above; `make clean` starts anew"):
        dev.demand([sys.executable, "-c", "raise SystemExit(1)"])


def test_old_python_hands_over_or_says_what_to_install(monkeypatch, capsys):
    handed = []
    monkeypatch.setattr(dev, "OLDEST", (99, 0))
    monkeypatch.setattr(dev.shutil, "which", lambda name: None)
    assert dev.main(["demo"]) == 1
    assert "Llamafu needs Python 3.11 or newer" in capsys.readouterr().err
    monkeypatch.setattr(dev.shutil, "which", lambda name: "/opt/python3.13" if name == "python3.13" else None)
    monkeypatch.setattr(
        dev.subprocess, "run", lambda command, check: handed.append(command) or dev.subprocess.CompletedProcess(command, 5)
    )
    assert dev.main(["demo", "--question", "Why?"]) == 5
    assert handed == [["/opt/python3.13", dev.__file__, "demo", "--question", "Why?"]]


def test_empty_tiers_say_so(ran, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    assert dev.main(["bench"]) == 1
    assert dev.main(["matrix"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "dev.py: error: there is no benchmark in bench/ yet",
        "dev.py: error: there is no tests/matrix yet",
    ]


def test_the_older_peft_has_an_environment_of_its_own(monkeypatch, tmp_path):
    """It borrows what it does not bring itself, and `make test-peers` makes it with the rest."""
    installed = []
    monkeypatch.setattr(dev, "VENV", tmp_path)
    monkeypatch.setattr(dev, "OLD_PEFT_VENV", tmp_path / "peft")
    monkeypatch.setattr(dev, "OLD_PEFT_PYTHON", tmp_path / "peft" / dev.BIN.name / "python")
    monkeypatch.setattr(dev, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(dev, "install", lambda requirements, what: installed.append(requirements))
    dev.set_up(["peers"])
    [place] = (tmp_path / "peft").rglob("borrowed.pth")
    assert installed[-1] == ["--target", str(place.parent), "--no-deps", "peft==0.18.1"]
    assert place.read_text(encoding="utf-8") == f"{sysconfig.get_path('purelib')}\n"
    dev.set_up(["peers"])
    assert len(installed) == 3
