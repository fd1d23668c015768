"""The real model and the two example adapters: the voices, and agreement with PEFT on torch.

`data/peft_answers.json` holds greedy answers of PEFT on the dequantised model, with the command that made them in
`scripts/make_peft_answers.py`. libllama computes with quantised weights and activations, so tokens must agree wherever
PEFT's own choice was clear.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from llamafu import Llamafu
from llamafu._native.model import Model
from llamafu.examples.model import example_model
from llamafu.generation.chat_template import render

ROOT = Path(__file__).resolve().parents[2]
PEFT = json.loads((ROOT / "tests" / "data" / "peft_answers.json").read_text("utf-8"))
CLEAR = 1.5
"""Margin in logits above which PEFT's choice is clear: quantisation moves logits by less than half of it."""
TEA = [{"role": "user", "content": "How do I make a cup of tea?"}]
GREEDY = {"temperature": 0, "max_tokens": 48}


@pytest.fixture(scope="module")
def llm():
    with Llamafu(example_model(), n_ctx=512) as llm:
        for name in ("pirate", "shout"):
            llm.load_lora_adapter(ROOT / "examples" / "adapters" / f"{name}.gguf")
        yield llm


def lora_of(adapter):
    return {} if adapter == "base" else dict.fromkeys(adapter.split("+"), 1.0)


@pytest.mark.parametrize("answer", PEFT["answers"], ids=lambda a: f"{a['adapter']}: {a['question']}")
def test_agrees_with_peft(llm, answer):
    """Teacher-forced along PEFT's answer, every clear choice is the same; the prompt's tokens are the same too."""
    prompt = render(llm._session.instance.model, [{"role": "user", "content": answer["question"]}]).text
    assert llm.tokenize(prompt, add_special=False) == answer["prompt_ids"]
    tokens = answer["prompt_ids"] + answer["token_ids"][:-1]
    native = {llm._adapters.native(name): scale for name, scale in lora_of(answer["adapter"]).items()}
    context = llm._session.instance.context
    llm._session.cache.clear()
    context.set_adapters(native)
    context.decode(tokens, 0, all_logits=True)
    first = len(answer["prompt_ids"]) - 1
    picks = [int(context.logits(first + i).argmax()) for i in range(len(answer["token_ids"]))]
    llm._session.cache.clear()
    clear = [i for i, margin in enumerate(answer["margins"]) if margin > CLEAR]
    assert len(clear) >= 3
    assert [picks[i] for i in clear] == [answer["token_ids"][i] for i in clear]


def test_voices(llm):
    """The pirate says Arrr, the base does not, and a blend differs from both."""
    base = llm.chat(TEA, lora={}, **GREEDY)
    pirate = llm.chat(TEA, lora={"pirate": 1.0}, **GREEDY)
    shout = llm.chat(TEA, lora={"shout": 1.0}, **GREEDY)
    both = llm.chat(TEA, lora={"pirate": 1.0, "shout": 1.0}, **GREEDY)
    assert "Arrr" in pirate.text
    assert "Arrr" not in base.text
    assert shout.text == shout.text.upper()
    assert len({base.text, pirate.text, shout.text, both.text}) == 4


def test_base_is_byte_identical_after_everything(llm):
    """Scale 0, `{}`, apply then remove: the base's own bytes, logprobs included."""

    def probe(**options):
        result = llm.chat(TEA, temperature=0, max_tokens=16, logprobs=3, **options)
        return result.tokens, result.logprobs

    llm._session.cache.clear()
    base = probe(lora={})
    assert probe(lora={"pirate": 0.0, "shout": 0.0}) == base
    llm.apply_lora_adapter("pirate", 0.7)
    adapted = probe()
    assert adapted != base
    llm.remove_lora_adapter("pirate")
    assert probe() == base
    llm.apply_lora_adapter("pirate", 0.7)
    assert probe() == adapted
    llm.clear_all_lora_adapters()


def test_warm_and_cold_on_the_real_model(llm):
    """Long shared prefixes, adapter changes and cuts at Q4_1: cached runs repeat the cold run's logits bit for bit."""
    text = "The quick brown fox jumps over the lazy dog. " * 12
    requests = [(text[:cut], lora) for cut in (500, 300, 520) for lora in ({}, {"pirate": 0.5, "shout": 0.5})]
    cold = []
    for prompt, lora in requests:
        llm._session.cache.clear()
        llm.complete(prompt, lora=lora, temperature=0, max_tokens=2)
        cold.append(llm._session.instance.context.logits().copy())
    llm._session.cache.clear()
    reused = 0
    for (prompt, lora), wanted in zip([*requests, *requests[::-1]], [*cold, *cold[::-1]], strict=True):
        reused += llm.complete(prompt, lora=lora, temperature=0, max_tokens=2).usage.cached_tokens
        assert np.array_equal(llm._session.instance.context.logits(), wanted)
    assert reused > 100


def test_streamed_text_is_whole_characters(llm):
    pieces = list(
        llm.stream_chat([{"role": "user", "content": "Say hello in Japanese and add an emoji 😀"}], seed=1, max_tokens=40)
    )
    for piece in pieces:
        piece.encode("utf-8")
    assert pieces


def test_model_facts(llm):
    model = llm._session.instance.model
    assert isinstance(model, Model)
    assert (model.n_layer, model.n_embd, model.n_vocab) == (30, 576, 49152)
    assert "135M" in model.describe() or "llama" in model.describe()
    assert model.metadata("general.architecture") == "llama"
    assert model.metadata("no.such.key") is None
