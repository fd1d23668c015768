"""EleutherAI's lm-evaluation-harness against a live server: its numbers are those of teacher forcing, adapters included."""

import json

import pytest
from helpers.package_environment import run_client
from helpers.served import served
from tiny_model import EOS, IM_END

from llamafu.generation.sampling import log_softmax

REQUIREMENTS = ("lm_eval[api]==0.4.13",)
DOCS = {
    "tiny_choice": [
        {"question": "The world was", "choices": ["hello", "in the end", "a", "you and you"], "answer": 1},
        {"question": "hello and the other", "choices": ["world", "one, or two of them"], "answer": 0},
        {"question": "1 2 3 of", "choices": ["é and 漢", "..."], "answer": 0},
    ],
    "tiny_text": [{"text": "hello world, and you were in the other end of it"}, {"text": "é " * 150}],
    "tiny_answer": [{"question": "hello", "answer": "x"}, {"question": "The world was", "answer": "y"}],
}
MODELS = {"tiny": {}, "a": {"a": 1.0}}


@pytest.fixture(scope="module")
def results(real, tiny_model, folder, tmp_path_factory):
    """What the harness has found, by model and number of requests at a time."""
    tasks = tmp_path_factory.mktemp("tasks")
    with served(tiny_model, "--adapters", folder, "--library", real.path, "--n-ctx", 2048) as running:
        assert running.url, running.log
        return run_client(
            "lm_eval_tasks.py",
            running.url,
            *REQUIREMENTS,
            seconds=900,
            LLAMAFU_TASKS=str(tasks),
            LLAMAFU_DOCS=json.dumps(DOCS),
            LLAMAFU_MODELS=json.dumps(list(MODELS)),
            HF_HOME=str(tasks / "cache"),
            HF_HUB_OFFLINE="1",
        )


@pytest.fixture(params=[f"{model}/{concurrent}" for model in MODELS for concurrent in (1, 4)])
def found(request, results):
    """The adapters of a model, and what was found with it."""
    return MODELS[request.param.partition("/")[0]], results[request.param]


def likelihood(alone, context, continuation, lora):
    """The log probability of tokens after others, and whether each is the likeliest there."""
    rows = alone.next_logits(context, continuation[:-1], lora=lora)
    numbers = [log_softmax(row)[token] for row, token in zip(rows, continuation, strict=True)]
    return sum(numbers), all(row.argmax() == token for row, token in zip(rows, continuation, strict=True))


def test_choices(found, alone):
    lora, tasks = found
    for doc, answers in zip(DOCS["tiny_choice"], tasks["tiny_choice"], strict=True):
        context = alone.tokenize(doc["question"], add_special=False)
        assert len(answers) == len(doc["choices"])
        for choice, [(number, is_greedy)] in zip(doc["choices"], answers, strict=True):
            whole = alone.tokenize(f"{doc['question']} {choice}", add_special=False)
            wanted, likeliest = likelihood(alone, context, whole[len(context) :], lora)
            assert float(number) == pytest.approx(wanted, abs=0.02)
            assert str(is_greedy) == str(likeliest)


def test_rolling_texts(found, alone):
    """The harness puts the BOS before them; this model's is number 0, which it takes for none, and takes EOS."""
    lora, tasks = found
    for doc, [[number]] in zip(DOCS["tiny_text"][:1], tasks["tiny_text"][:1], strict=True):
        tokens = alone.tokenize(doc["text"], add_special=False)
        wanted, _ = likelihood(alone, [EOS], tokens, lora)
        assert float(number if isinstance(number, str | float) else number[0]) == pytest.approx(wanted, abs=0.05)


def test_answers(found, alone):
    lora, tasks = found
    for doc, [[answer]] in zip(DOCS["tiny_answer"], tasks["tiny_answer"], strict=True):
        prompt, said = alone.tokenize(doc["question"], add_special=False), []
        while len(said) < 8 and (token := int(alone.next_logits(prompt, said, lora=lora)[-1].argmax())) not in {EOS, IM_END}:
            said.append(token)
        assert answer == alone.detokenize(said).partition("\n")[0]
