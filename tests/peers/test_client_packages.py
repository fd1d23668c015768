"""Clients' own packages, each in an environment of its own, against one live server with adapters.

What is tried is what they send and how they read the answers, so that the model follows a script (`helpers.talking_model`): its
adapter `caller` calls a tool by itself, and answers once it has the result. Forced calls and schemas are held by grammars.
"""

import json

import pytest
from helpers.package_environment import python_with, run_client
from helpers.served import served
from helpers.talking_model import ANSWER, BASE, PIRATE, WIDTH, write_talking_model

LONG = 600
"""Seconds for a program: a package's first import may take a minute where nothing is compiled yet."""
SAID = {"smol": BASE, "pirate": PIRATE}


@pytest.fixture(scope="module")
def url(real, tmp_path_factory):
    folder = tmp_path_factory.mktemp("talking")
    flags = ("--adapters", folder / "adapters", "--library", real.path, "--n-ctx", 16384)
    with served(write_talking_model(folder), *flags) as running:
        assert running.url, running.log
        yield running.url


def assert_described(told):
    """A nested model was filled in: its package has checked it already."""
    assert told["ship"] in {"Anna", "Bella"}
    assert {stop["city"] for stop in [told["start"], *told["stops"]]} <= {"Berlin", "Tokyo"}


def test_langchain_openai(url):
    litellm_has_its_file = python_with("litellm").parents[1]  # the network has tiktoken's; litellm brings one of them
    [tokenizer] = litellm_has_its_file.glob("lib/*/site-packages/litellm/litellm_core_utils/tokenizers")
    told = run_client(
        "langchain_openai_client.py", url, "langchain", "langchain-openai", seconds=LONG, TIKTOKEN_CACHE_DIR=str(tokenizer)
    )
    assert told["said"] == SAID
    assert told["usage"] == 3
    assert told["blend"] == told["streamed"] == PIRATE
    assert told["streamed_usage"] == 3
    assert told["kinds"] == ["human", "ai", "tool", "ai"]
    assert told["ran"] == ["Tokyo"]
    assert told["answer"] == ANSWER
    assert json.loads(told["parts"]) == {"city": "Tokyo"}
    for voyage in told["structured"].values():
        assert_described(voyage)
    assert told["json_mode"] == "dict"
    assert told["refused"] == "not_found"
    assert told["embedded"] == [WIDTH, WIDTH]
    # As it comes, it sends ids of another tokenizer, some of them beyond this vocabulary.
    assert "give ids of this model's own tokenizer, or the text itself" in told["embedded_tokens"]


def test_llama_index(url):
    told = run_client(
        "llama_index_client.py", url, "llama-index-llms-openai-like", "llama-index-embeddings-openai-like", seconds=LONG
    )
    assert told["said"] == SAID
    assert told["streamed"] == PIRATE
    assert told["completed"] == PIRATE
    assert told["ran"] == ["Tokyo"]
    assert "sunny" in told["tool"]
    for voyage in told["structured"].values():
        assert_described(voyage)
    assert told["embedded"] == [WIDTH, WIDTH]


def test_litellm(url):
    told = run_client("litellm_client.py", url, "litellm", seconds=LONG)
    assert told["said"] == SAID
    assert told["streamed"] == PIRATE
    finish, name, arguments = told["call"]
    assert (finish, name, json.loads(arguments)) == ("tool_calls", "weather", {"city": "Tokyo"})
    assert told["parts"] == ["weather", arguments]
    assert_described(told["structured"])
    assert told["refused"] == 404
    assert told["embedded"] == [WIDTH, WIDTH]


def test_pydantic_ai(url):
    told = run_client("pydantic_ai_client.py", url, "pydantic-ai-slim[openai]", seconds=LONG)
    assert told["streamed"] == told["said"] == PIRATE
    assert told["ran"] == ["Tokyo"]
    assert told["answer"] == ANSWER
    for voyage in told["structured"].values():
        assert_described(voyage)


def test_instructor(url):
    told = run_client("instructor_client.py", url, "instructor", seconds=LONG)
    assert set(told["structured"]) == {"TOOLS", "JSON_SCHEMA", "JSON"}
    for voyage in told["structured"].values():
        assert_described(voyage)


def test_dspy(url, tmp_path):
    told = run_client("dspy_client.py", url, "dspy", seconds=LONG, DSPY_CACHEDIR=str(tmp_path))
    assert_described(told["structured"])
    assert told["said"] == PIRATE
