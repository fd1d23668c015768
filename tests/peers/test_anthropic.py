"""`llamafu serve` with the anthropic package, in an environment of its own."""

import pytest
from helpers.package_environment import run_client
from helpers.served import served

from llamafu import Llamafu

HI = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def alone(real, tiny_model, folder):
    with Llamafu(tiny_model, library=real.path, n_ctx=4096) as llm:
        for name in ("a", "b"):
            llm.load_lora_adapter(folder / f"{name}.gguf", name=name)
        yield llm


@pytest.fixture(scope="module")
def told(real, tiny_model, folder, alone):
    """What the script found."""
    greedy = alone.chat(HI, lora={}, **GREEDY).text
    stop = next(character for character in greedy if character.isalnum())
    with served(tiny_model, "--adapters", folder, "--library", real.path, "--n-ctx", 4096) as server:
        assert server.url, server.log
        found = run_client("anthropic_client.py", server.url, "anthropic==2.14.0", STOP=stop)
    return {**found, "stop": stop}


def test_answers_by_adapter(told, alone):
    messages = [{"role": "system", "content": "s"}, *HI]
    for name, model, mix in (("base", "tiny", {}), ("a", "a", {"a": 1.0}), ("half", "tiny", {"a": 0.5})):
        wanted = alone.chat(messages, lora=mix, **GREEDY)
        reason = {"length": "max_tokens", "stop": "end_turn"}[wanted.finish_reason]
        found = told["answers"][name]
        assert found[:3] == [model, wanted.text, reason]
        assert found[3:] == [found[3], wanted.usage.completion_tokens, mix]
        assert 0 < found[3] <= wanted.usage.prompt_tokens


def test_streams(told, alone):
    wanted = alone.chat(HI, lora={"a": 1.0}, **GREEDY)
    found = told["streams"]
    assert found["text"] == found["final"] == wanted.text
    assert (found["input"], found["output"]) == (wanted.usage.prompt_tokens, wanted.usage.completion_tokens)
    assert found["kinds"] == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop")
    ]
    assert told["at_once"] == [alone.chat(HI, lora={"a": scale}, **GREEDY).text for scale in (0, 0.5, 1)]


def test_tools(told):
    found = told["tools"]
    assert (found["reason"], found["name"]) == ("tool_use", "look")
    assert found["input"] == found["streamed"] in [{"q": "a"}, {"q": "b"}]
    assert found["has_parts"]
    assert found["after"] == ["text"]


def test_the_rest(told, alone):
    assert told["count"] == len(alone.tokenize_chat(HI))
    assert told["count_tools"] > told["count"] + 50
    assert told["parsed"]
    assert told["stopped"] == ["stop_sequence", told["stop"]]
    assert told["bearer"] == told["beta"] == alone.chat(HI, lora={"a": 1.0}, **GREEDY).text


def test_errors_are_its_exceptions(told):
    errors = told["errors"]
    assert errors["key"][:3] == ["AuthenticationError", 401, "authentication_error"]
    assert errors["model"][:3] == ["NotFoundError", 404, "not_found_error"]
    for name, message in (
        ("field", "top_p is 2"),
        ("long", "tokens, but"),
        ("image", "messages[0].content[0]: this server fetches no images"),
    ):
        assert errors[name][:3] == ["BadRequestError", 400, "invalid_request_error"]
        assert message in errors[name][3]
