"""`scripts/other_machines.py`: its steps, without a machine."""

import other_machines
import pytest


def test_steps_go_on_after_a_failure(monkeypatch, capsys):
    """Each step is taken, for its time, and told of; one that failed or was stopped makes the whole fail."""
    statuses = {"proof": other_machines.TIMED_OUT, "paths": 1}
    taken = []

    def run(arguments, seconds):
        step = other_machines.STEPS[len(taken)]
        taken.append(step.shows)
        assert (arguments, seconds) == ([*other_machines.PYTEST, *step.tests], step.seconds)
        return statuses.get(step.shows, 0)

    assert other_machines.take_steps("arm64", run) == 1
    assert taken == [step.shows for step in other_machines.STEPS]
    told = capsys.readouterr().err.splitlines()[-len(taken) :]
    ends = {"proof": "stopped, it may take 120 s", "paths": "failed, status 1"}
    assert [line.split("s  ")[-1] for line in told] == [ends.get(name, "passed") for name in taken]
    statuses.clear()
    taken.clear()
    assert other_machines.take_steps("arm64", run) == 0


@pytest.mark.parametrize("step", other_machines.STEPS, ids=lambda step: step.shows)
def test_steps_name_tests(step):
    """Every word of a step's `-k` is in a test's name of its file."""
    file, *rest = step.tests
    text = (other_machines.ROOT / file).read_text(encoding="utf-8")
    names = [line for line in text.splitlines() if line.startswith("def test_")]
    for word in rest[-1].split(" or ") if rest else [""]:
        assert any(word in name for name in names), word


def test_machine_that_is_none(capsys):
    assert other_machines.main(["amiga"]) == 2
    assert capsys.readouterr().err == "other_machines.py: error: name one of arm64, windows\n"
