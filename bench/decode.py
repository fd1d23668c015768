"""Single-stream decoding: `llm.stream` against a bare loop of llama_decode and greedy pick, same context, in turn."""

from __future__ import annotations

import sys
from typing import Any

import _conditions as conditions
import numpy as np

from llamafu import Llamafu
from llamafu.examples.model import example_model

TOKENS = 64
ROUNDS = 15
LIMIT = 1.03
PROMPT = "Once upon a time there was a"


def bare_loop(llm: Llamafu, lora: dict[Any, float]) -> list[int]:
    """The least that any Python binding must do for a token, on the same library, model and context."""
    context, model = llm._session.instance.context, llm._session.instance.model  # noqa: SLF001
    lib, ffi = model.library.lib, model.library.ffi
    llm._session.cache.clear()  # noqa: SLF001
    context.set_adapters(lora)
    pointer, batch = context.pointer, lib.llama_batch_init(64, 0, 1)
    row = {"seq": 0}

    def decode(tokens: list[int], position: int) -> int:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = (
                token,
                position + i,
                1,
                row["seq"],
                0,
            )
        batch.logits[len(tokens) - 1] = 1
        assert lib.llama_decode(pointer, batch) == 0  # noqa: S101
        return int(
            np.frombuffer(ffi.buffer(lib.llama_get_logits_ith(pointer, -1), model.n_vocab * 4), dtype=np.float32).argmax()
        )

    prompt = llm.tokenize(PROMPT)
    decode(prompt[:-1], 0)
    token, position, made = decode(prompt[-1:], len(prompt) - 1), len(prompt), []
    made.append(token)
    while len(made) < TOKENS:
        token = decode([token], position)
        position += 1
        made.append(token)
    lib.llama_batch_free(batch)
    llm._session.cache.clear()  # noqa: SLF001
    return made


def streamed(llm: Llamafu, lora: dict[Any, float]) -> tuple[int, ...]:
    """The same tokens through the public interface."""
    llm._session.cache.clear()  # noqa: SLF001
    stream = llm.stream(PROMPT, lora=lora, temperature=0, max_tokens=TOKENS, ignore_eos=False)
    for _piece in stream:
        pass
    return stream.completion.tokens


def main() -> int:
    """Print both sides and their ratio; exit status 1 when the ratio is over its limit."""
    conditions.show(f"decode: {TOKENS} tokens, greedy, SmolLM2-135M Q4_1, {ROUNDS} rounds, both sides in turn")
    good = True
    with Llamafu(example_model(), n_ctx=256) as llm:
        pirate = llm.load_lora_adapter(conditions.ADAPTERS / "pirate.gguf")
        native = llm._adapters.native(pirate)  # noqa: SLF001
        for name, scales, natives in (("base", {}, {}), ("one adapter", {pirate: 1.0}, {native: 1.0})):
            if tuple(bare_loop(llm, natives)) != streamed(llm, scales):
                print("   the two sides made different tokens")
                return 1
            times = conditions.in_turn(
                {"bare": lambda n=natives: bare_loop(llm, n), "stream": lambda s=scales: streamed(llm, s)},  # type: ignore[misc]
                ROUNDS,
            )
            for side, values in times.items():
                print(f"   {name:12} {side:7} {conditions.milliseconds(values)}  {TOKENS / min(values):6.1f} tok/s at best")
            good &= conditions.verdict(f"{name}: stream / bare", conditions.ratio(times["stream"], times["bare"]), LIMIT, "x")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
