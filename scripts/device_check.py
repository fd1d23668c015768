"""Check this machine's GPUs and measure them, in one command that takes less than five minutes.

    python scripts/device_check.py [--json FILE] [--all-tests] [OPTIONS OF bench/device.py]

Four steps: what `llamafu doctor` says of the devices, the tests of tests/devices/test_smoke.py (with `--all-tests`, all of
tests/devices), `bench/device.py` with what is left of the time, and one JSON file with all of it. `make device-check` sets
the environment up before; without make, install the project with its extras `prebuilt` and `test`.

Exit status: 0 when everything holds, 1 when something does not, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GPUS = ("gpu", "igpu")
NO_DEVICE = 2
LIMIT = 290.0
"""Seconds for all steps together."""
LEAST = 30.0
"""Seconds that a step may take in any case."""


def main(words: list[str] | None = None) -> int:
    """Take the steps, write the file, and return the exit status."""
    arguments, for_bench = _arguments(words)
    began = time.monotonic()

    def left() -> float:
        return max(LEAST, arguments.limit - (time.monotonic() - began))

    report = doctor(left())
    gpus = [each for each in report["devices"] or [] if each["kind"] in GPUS]
    if not gpus:
        _say("there is no GPU here, or its driver crashes: `llamafu doctor` says what was found")
        return NO_DEVICE
    for gpu in gpus:
        works = ", ".join(f"{what}: {why or 'proven'}" for what, why in gpu["works"].items())
        _say(f"{gpu['name']}, {gpu['description']}, {gpu['total'] / 2**30:.1f} GiB: {works}")
    tested = correctness(left(), all_tests=arguments.all_tests)
    measured = speed(left(), for_bench)
    answer = {
        "seconds": round(time.monotonic() - began),
        "doctor": report,
        "correctness": tested,
        "bench": measured,
        "holds": not any(why for gpu in gpus for why in gpu["works"].values())
        and tested["status"] == 0
        and tested["passed"] > 0
        and measured["status"] == 0,
    }
    arguments.json.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    _say(f"{'all of it holds' if answer['holds'] else 'NOT all of it holds'}; {arguments.json} has everything")
    return 0 if answer["holds"] else 1


def doctor(seconds: float) -> dict[str, Any]:
    """Return what the doctor reports, the devices' proofs among it."""
    _say("asking the doctor, who tries models, adapters and mixing on each device")
    command = [sys.executable, "-m", "llamafu", "doctor", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=seconds, cwd=ROOT)
    except subprocess.TimeoutExpired:
        message = f"the doctor was not done within {seconds:.0f} s; a driver hangs, or compiles for that long: try --limit"
        raise SystemExit(message) from None
    report: dict[str, Any] = json.loads(done.stdout)  # its status is 1 where something has to be mended
    return report


def correctness(seconds: float, *, all_tests: bool) -> dict[str, Any]:
    """Run the tests of devices, and return how many passed, failed and were skipped."""
    place = "tests/devices" if all_tests else "tests/devices/test_smoke.py"
    _say(f"comparing with the CPU: {place}")
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.xml"
        command = [sys.executable, "-m", "pytest", place, "-q", "-p", "no:cacheprovider", f"--junitxml={found}"]
        status = _run(command, seconds, {"LLAMAFU_DEMAND_DEVICE": "1"})
        if not found.exists():
            return {"status": status, "passed": 0, "failed": 0, "skipped": 0}
        suite = ET.parse(found).getroot().find("testsuite")  # noqa: S314 - written by pytest, just now
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")} if suite is not None else {}
    failed = counts.get("failures", 0) + counts.get("errors", 0)
    skipped = counts.get("skipped", 0)
    return {"status": status, "passed": counts.get("tests", 0) - failed - skipped, "failed": failed, "skipped": skipped}


def speed(seconds: float, options: list[str]) -> dict[str, Any]:
    """Measure, and return what was measured within the time."""
    _say(f"measuring: bench/device.py {' '.join(options)}")
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        status = _run([sys.executable, str(ROOT / "bench" / "device.py"), "--json", str(found), *options], seconds, {})
        return {"status": status, **(json.loads(found.read_text("utf-8")) if found.exists() else {})}


def _run(command: list[str], seconds: float, variables: dict[str, str]) -> int | str:
    """Run a step, whose output is shown; its exit status, or that its time was up."""
    try:
        return subprocess.run(command, check=False, timeout=seconds, cwd=ROOT, env={**os.environ, **variables}).returncode
    except subprocess.TimeoutExpired:
        return f"not done within {seconds:.0f} s"


def _arguments(words: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=lambda text: Path(text).resolve(), default=Path("device_check.json").resolve())
    parser.add_argument("--all-tests", action="store_true")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all steps together")
    return parser.parse_known_args(words)


def _say(text: str) -> None:
    sys.stderr.write(f"-- {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
