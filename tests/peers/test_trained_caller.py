"""An adapter trained to call tools by itself (`tool_choice` "auto"), on the example model, through clients' own packages.

`tests/data/caller.gguf` was trained by scripts/train_adapter.py on what scripts/make_tool_data.py writes: other cities.
"""

import json
import shutil
from pathlib import Path

import openai
import pytest
from helpers.package_environment import run_client
from helpers.served import API, served

from llamafu.examples.model import example_model

ADAPTER = Path(__file__).parents[1] / "data" / "caller.gguf"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTION = {"role": "user", "content": "How is the weather in Tokyo?"}


@pytest.fixture(scope="module")
def url(real, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copy(ADAPTER, folder)
    with served(example_model(), "--adapters", folder, "--library", real.path, "--n-ctx", 4096) as running:
        assert running.url, running.log
        yield running.url


@pytest.fixture
def chat(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=API, max_retries=0)

    def ask(model, messages, **options):
        return client.chat.completions.create(
            model=model, messages=messages, tools=[WEATHER], temperature=0, max_tokens=60, **options
        )

    return ask


def test_the_adapter_calls_and_the_model_without_it_does_not(chat):
    choice = chat("caller", [QUESTION]).choices[0]
    [call] = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments) == {"city": "Tokyo"}
    assert not chat("SmolLM2-135M-Instruct.Q4_1", [QUESTION]).choices[0].message.tool_calls


def test_a_streamed_call_is_the_same(chat):
    deltas = [chunk.choices[0].delta for chunk in chat("caller", [QUESTION], stream=True) if chunk.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [call.function.name for call in calls if call.function.name] == ["weather"]
    assert json.loads("".join(call.function.arguments or "" for call in calls)) == {"city": "Tokyo"}


def test_a_result_is_answered_and_a_greeting_calls_nothing(chat):
    message = chat("caller", [QUESTION]).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny, 21 degrees"}
    answer = chat("caller", [QUESTION, message, result]).choices[0]
    assert answer.finish_reason == "stop"
    assert "sunny" in answer.message.content
    assert "Tokyo" in answer.message.content
    assert not chat("caller", [{"role": "user", "content": "Hello!"}]).choices[0].message.tool_calls


def test_langchains_agent_runs_the_tool(url):
    told = run_client("langchain_agent.py", url, "langchain", "langchain-openai", seconds=600)
    assert told["ran"] == ["Tokyo"]
    assert told["kinds"] == ["human", "ai", "tool", "ai"]
    assert "sunny" in told["answer"]
