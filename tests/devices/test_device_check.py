"""`scripts/device_check.py` from end to end, with the tiny model in place of one that is worth measuring."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import device_check

# Without the sides that change a context's adapters at every step, which Mesa's driver does not survive.
FEW = ["--k", "1,3", "--rounds", "1", "--tokens", "4", "--flash-attn", "off", "--threads", "1", "--sides", "mixed,same,base"]


def check(tmp_path, *words, **variables):
    command = [sys.executable, device_check.__file__, "--json", str(tmp_path / "found.json"), *words]
    environment = {**os.environ, "LLAMAFU_CACHE": str(tmp_path / "cache"), **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=900)


def test_device_check(tiny_model, tmp_path):
    done = check(tmp_path, "--limit", "800", "--model", str(tiny_model), *FEW)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert found["holds"]
    assert found["correctness"] == {"status": 0, "passed": 2, "failed": 0, "skipped": 0}
    gpus = [each for each in found["doctor"]["devices"] if "works" in each]
    assert gpus[0]["works"] == {"models": "", "adapters": "", "mixing": ""}
    bench = found["bench"]
    assert gpus[0]["name"] in bench["conditions"]["devices"]
    for k in ("1", "3"):
        assert {side: len(rates) for side, rates in bench["rates"][f"tiny K={k}"].items()} == {"mixed": 1, "same": 1, "base": 1}
        assert all(rate > 0 for rates in bench["rates"][f"tiny K={k}"].values() for rate in rates)
        assert "kernel device" in bench["conditions"][f"tiny K={k}"]
        assert " 0 in groups" in bench["conditions"][f"tiny K={k}"]
    assert "tiny K=3: mixed / base" in bench["verdicts"]


def test_without_a_gpu(tmp_path):
    """Said, with an exit status of its own, and nothing is written."""
    done = check(tmp_path, GGML_VK_VISIBLE_DEVICES="")
    if done.returncode == 0:  # a real one
        return
    assert done.returncode == device_check.NO_DEVICE, done.stderr
    assert "there is no GPU here" in done.stderr
    assert not (tmp_path / "found.json").exists()


def test_what_does_not_hold(tmp_path, monkeypatch, capsys):
    """A proof, a test or a measurement that fails makes the status 1; an option that bench/device.py does not know, too."""
    works = dict.fromkeys(("models", "adapters", "mixing"), "")
    report = {"devices": [{"kind": "gpu", "name": "X0", "description": "a card", "total": 2**30, "works": works}]}
    good, measured = {"status": 0, "passed": 2, "failed": 0, "skipped": 0}, {"status": 0}
    for proof, tested, bench, status in (
        ("", good, measured, 0),
        ("off by 1", good, measured, 1),
        ("", {**good, "status": 1}, measured, 1),
        ("", {**good, "passed": 0}, measured, 1),
        ("", good, {"status": "not done within 3 s"}, 1),
    ):
        works["mixing"] = proof
        monkeypatch.setattr(device_check, "doctor", lambda _: report)
        monkeypatch.setattr(device_check, "correctness", lambda *_, tested=tested, **__: tested)
        monkeypatch.setattr(device_check, "speed", lambda *_, bench=bench: bench)
        path = tmp_path / "found.json"
        assert device_check.main(["--json", str(path)]) == status
        assert json.loads(path.read_text("utf-8"))["holds"] == (status == 0)
    told = capsys.readouterr().err
    assert "X0, a card, 1.0 GiB: models: proven, adapters: proven, mixing: off by 1" in told
    assert "NOT all of it holds" in told
    monkeypatch.undo()
    assert device_check.speed(60.0, ["--wrong"])["status"] == 2
