"""Changing the adapter: Llamafu against llama-cpp-python, on the same libllama (the one inside llama-cpp-python), in turn.

    python bench/peers.py

llama-cpp-python names its adapter in the constructor, so its users open the model again for another one. Both sides answer
the same chat prompt with pirate, then with shout; what is timed is from the wish for shout to its first token, and what is
printed too is the speed of the tokens after it. Each round is a fresh process. Skipped where llama-cpp-python is missing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import _conditions as conditions

ROUNDS = 7
TOKENS = 48
PROMPT = "<|im_start|>user\nTell me about the sea.<|im_end|>\n<|im_start|>assistant\n"

LLAMAFU = """
import json, sys, time
from llamafu import Llamafu
model, pirate, shout, prompt, tokens = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
llm = Llamafu(model, n_ctx=512)
llm.load_lora_adapter(pirate).apply()
llm.complete(prompt, temperature=0, max_tokens=4)
began = time.perf_counter()
llm.set_lora_adapters({llm.load_lora_adapter(shout): 1.0})
stream = llm.stream(prompt, temperature=0, max_tokens=tokens, ignore_eos=True)
text = next(stream)
first = time.perf_counter() - began
text += "".join(stream)
print(json.dumps([first, (tokens - 1) / (time.perf_counter() - began - first), text]))
"""

LLAMA_CPP_PYTHON = """
import json, sys, time
from llama_cpp import Llama
model, pirate, shout, prompt, tokens = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
def opened(adapter):
    return Llama(model, n_ctx=512, lora_path=adapter, n_threads=2, n_threads_batch=2, verbose=False)
llm = opened(pirate)
llm(prompt, temperature=0, max_tokens=4)
began = time.perf_counter()
llm.close()
llm = opened(shout)
stream = llm(prompt, temperature=0, max_tokens=tokens, stream=True, repeat_penalty=1.0)
text = next(stream)["choices"][0]["text"]
first = time.perf_counter() - began
pieces = [part["choices"][0]["text"] for part in stream]
print(json.dumps([first, len(pieces) / (time.perf_counter() - began - first), text + "".join(pieces)]))
"""


def run(code: str, model: Path, library: Path) -> tuple[float, float, str]:
    """One side, in a process of its own: seconds to the first token, tokens per second after it, the text."""
    adapters = [str(conditions.ADAPTERS / f"{name}.gguf") for name in ("pirate", "shout")]
    environment = {**os.environ, "LLAMAFU_LIB": str(library), "PYTHONPATH": str(conditions.ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", code, str(model), *adapters, PROMPT, str(TOKENS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, speed, text = json.loads(done.stdout.splitlines()[-1])
    return float(first), float(speed), str(text)


def main() -> int:
    """Print both sides; exit status 1 when Llamafu is not the faster one."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        print("== peers: skipped, llama-cpp-python is not installed in this environment")
        return 0
    from llamafu.examples.model import example_model

    library = Path(found.origin).parent / "lib"
    os.environ["LLAMAFU_LIB"] = str(library)
    conditions.show(f"peers: change of adapter, and decoding after it; {ROUNDS} rounds of fresh processes, in turn, 2 threads")
    model = example_model()
    sides = {"llamafu": LLAMAFU, "llama-cpp-python": LLAMA_CPP_PYTHON}
    results: dict[str, list[tuple[float, float, str]]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, code in sides.items():
            results[name].append(run(code, model, library))
    for name, rows in results.items():
        first = statistics.median(row[0] for row in rows) * 1e3
        speed = statistics.median(row[1] for row in rows)
        print(f"   {name:17} {first:7.1f} ms from the wish to the first token, then {speed:6.1f} tok/s: {rows[0][2][:50]!r}")
    times = {name: [row[0] for row in rows] for name, rows in results.items()}
    ratio = conditions.ratio(times["llamafu"], times["llama-cpp-python"])
    return 0 if conditions.verdict("llamafu / llama-cpp-python, to the first token", ratio, 1.0, "x") else 1


if __name__ == "__main__":
    sys.exit(main())
