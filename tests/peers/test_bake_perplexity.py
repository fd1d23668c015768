"""The perplexity of a baked model against that of its base with the live adapter, on texts that no calibration has read.

It takes about fifteen minutes, and needs no other program: it is here because it is slow.
"""

import logging
import pydoc_data.topics
from functools import cache

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from helpers.baked_models import PIRATE, ggml  # noqa: F401 - a fixture
from helpers.requantising import requantised

from llamafu import Engine, Llamafu
from llamafu.adapters import bake
from llamafu.baking.calibration_data import _QUESTIONS
from llamafu.engine import Request
from llamafu.generation.chat_template import render

WINDOW = 512
FEWEST = 3500  # tokens of each text: the paired difference then has a standard error of 0.3 to 0.5 %
QUESTIONS = (
    "How do bees make honey?",
    "Tell me about the Roman Empire.",
    "What is the difference between a crocodile and an alligator?",
    "Write a poem about autumn.",
    "How can I become a better listener?",
    "Explain how the internet works.",
    "What are the rules of chess?",
    "Suggest a weekend trip.",
    "Why do leaves change colour?",
    "Who was Marie Curie?",
    "How do I fix a flat tyre?",
    "Write an email asking for a day off.",
    "What is inflation?",
    "Describe a sunset by the sea.",
    "How do airplanes fly?",
    "What are good gifts for a child?",
    "Tell me a story about a dragon.",
    "How do I grow tomatoes?",
    "What is democracy?",
    "Explain the water cycle.",
    "Why is the sea salty?",
    "Give me three tips for public speaking.",
    "What makes a good friend?",
    "How do magnets work?",
)


@pytest.fixture(scope="module")
def models(ggml, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("models")
    return {kind: requantised(kind, folder / f"{kind.name}.gguf", ggml) for kind in (Kind.Q4_0, Kind.Q8_0)}


@pytest.fixture(scope="module")
def texts(models):
    """Python's own help, and chats with the adapter on; windows of tokens."""
    assert not set(QUESTIONS) & set(_QUESTIONS)
    topics = pydoc_data.topics.topics
    help_text = "\n\n".join(topics[name] for name in sorted(topics))[20000:60000]
    with Llamafu(models[Kind.Q4_0], n_ctx=WINDOW) as llm:
        help_tokens = llm.tokenize(help_text)
        model = llm._session.instance.model
        questions = [*QUESTIONS, *QUESTIONS[:6]]  # these are answered twice, or there are too few tokens
        prompts = [render(model, [{"role": "user", "content": question}]).text for question in questions]
        asked = [llm.tokenize(prompt) for prompt in prompts]
    freely = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 180}
    with Engine(models[Kind.Q4_0], max_sequences=len(prompts), n_ctx=10240, n_threads=2) as engine:
        engine.add_adapter(PIRATE, name="pirate")
        requests = [Request(prompt=prompt, lora={"pirate": 1.0}, seed=i, **freely) for i, prompt in enumerate(prompts)]
        answers = engine.complete_many(requests)
    found = {
        "plain": [help_tokens[first : first + WINDOW] for first in range(0, 8 * WINDOW, WINDOW)],
        "chats": [[*tokens, *answer.tokens] for tokens, answer in zip(asked, answers, strict=True)],
    }
    assert min(sum(map(len, windows)) - len(windows) for windows in found.values()) > FEWEST
    return found


def counted(windows):
    """Tell of every token but the first of each window whether it counts.

    All chats begin with one and the same system prompt, which counts once: 24 times over, its twenty tokens (which the live
    adapter finds most unlikely, up to 22 nats each) would outweigh half of the answers.
    """
    same = next(place for place, tokens in enumerate(zip(*windows, strict=False)) if len(set(tokens)) > 1)
    return np.concatenate([np.arange(1, len(window)) >= (same if number else 0) for number, window in enumerate(windows)])


def surprise(path, adapters, texts):
    """Return the negative log likelihood of every token that counts, {text: [tokens]}."""
    found = {}
    with Llamafu(path, n_ctx=WINDOW, n_batch=WINDOW, type_k="f32", type_v="f32", flash_attn="off", n_threads=2) as llm:
        native = {llm._adapters.native(llm.load_lora_adapter(path)): scale for path, scale in adapters.items()}
        context = llm._session.instance.context
        context.set_adapters(native)
        for name, windows in texts.items():
            rows = []
            for window in windows:
                context.clear()
                context.decode(window, 0, all_logits=True)
                logits = context.output_rows(len(window))[:-1].astype(np.float32)
                logits -= logits.max(-1, keepdims=True)
                rows.append(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(window) - 1), window[1:]])
            found[name] = np.concatenate(rows)[counted(windows)]
        context.set_adapters({})
    return found


@pytest.fixture(scope="module")
def off(models, texts, tmp_path_factory):
    """How far the baked model's perplexity is from the live adapter's, and the standard error: {text: (share, error)}."""

    @cache
    def found(kind):
        right = surprise(models[kind], {PIRATE: 1.0}, texts)
        out = bake(models[kind], {PIRATE: 1.0}, tmp_path_factory.mktemp("baked") / "baked.gguf", calibration="auto")
        baked = surprise(out, {}, texts)
        more = {name: baked[name] - right[name] for name in texts}
        result = {name: (np.expm1(row.mean()), row.std() / len(row) ** 0.5) for name, row in more.items()}
        logging.getLogger(__name__).info("%s: %s", kind.name, result)
        return result

    return found


CASES = [
    pytest.param(kind, text, id=f"{kind.name.lower()}-{text}") for kind in (Kind.Q4_0, Kind.Q8_0) for text in ("plain", "chats")
]


@pytest.mark.parametrize(("kind", "text"), CASES)
def test_perplexity_is_within_one_per_cent(off, kind, text):
    """Rounding to the nearest misses it: by 13 % and 96 % at Q4_0, by 1.1 ± 0.2 % and 1.2 ± 0.3 % at Q8_0.

    Matrices that do not make good what went before (`correction` zero) miss it by 4 to 7 % at Q4_0, as decision 0023 says.
    """
    share, error = off(kind)[text]
    assert abs(share) < 0.01, (share, error)
    assert error < 0.007
