"""OpenAI's Responses API by the packages that speak it, each in an environment of its own."""

import pytest
from helpers import doc_pages
from helpers.package_environment import run_client
from helpers.served import served

OPENAI, AGENTS, LITELLM = "openai>=3,<4", "openai-agents>=0.5", "litellm>=1.100,<2"
GREEDY = {"temperature": 0, "max_tokens": 8}
HI = {"role": "user", "content": "hello"}
desk = doc_pages.desk  # a fixture


@pytest.fixture(scope="module")
def url(real, tiny_model, folder):
    with served(tiny_model, "--adapters", folder, "--library", real.path, "--n-ctx", 4096) as running:
        assert running.url, running.log
        yield running.url


def test_openai(url, alone):
    told = run_client("openai_responses.py", url, OPENAI)
    kind = [{"role": "system", "content": "be kind"}, HI]
    wanted = alone.chat(kind, lora={"a": 1.0}, **GREEDY)
    assert told["plain"]["texts"] == [wanted.text, alone.chat([HI], lora={"b": 0.5}, **GREEDY).text]
    assert told["plain"]["status"] == ["incomplete", "max_output_tokens"]
    assert told["plain"]["kinds"] == ["ResponseOutputMessage"]
    used = told["plain"]["usage"]
    assert (used["input_tokens"], used["output_tokens"]) == (wanted.usage.prompt_tokens, 8)
    assert told["streamed"] == {
        "text": alone.chat([HI], lora={"a": 1.0}, **GREEDY).text,
        "ends": ["response.created", "response.incomplete"],
        "unknown": [],
        "numbers": True,
    }
    assert (told["structured"]["same"], told["structured"]["kind"]) == (True, "Answer")
    assert {"response.output_text.delta", "response.output_text.done", "response.completed"} <= {*told["structured"]["kinds"]}
    assert (told["tools"]["kind"], told["tools"]["same"], told["tools"]["after"]) == ("Look", True, ["message"])
    assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= {*told["tools"]["kinds"]}
    wanted = alone.chat([HI], logprobs=2, **GREEDY).logprobs
    assert [token for token, _, _ in told["probabilities"]] == [one.text for one in wanted]
    assert [value for _, value, _ in told["probabilities"]] == pytest.approx([one.logprob for one in wanted], abs=5e-3)
    assert {count for _, _, count in told["probabilities"]} == {2}
    assert told["refused"] == [
        ["NotFoundError", "not_found", None],
        ["BadRequestError", "invalid_request", "previous_response_id"],
        ["BadRequestError", "invalid_request", "tool_choice"],
        ["BadRequestError", "invalid_request", "truncation"],
    ]


def test_openai_agents(url):
    told = run_client("agents_sdk.py", url, AGENTS)
    items = ["tool_call_item", "tool_call_output_item", "message_output_item"]
    for name in ("responses", "named", "chats"):
        run = told[name]
        assert (run["called"], run["items"], run["answered"]) == (1, items, True), name
        assert run["outputs"][0] in {"sun in Paris", "sun in Rome"}
        assert (run["requests"], run["counted"]) == (2, True)
    for name in ("streamed responses", "streamed chats"):
        run = told[name]
        assert (run["called"], run["items"]) == (1, items), name
        assert {"response.created", "response.output_item.done", "response.function_call_arguments.delta"} <= {*run["kinds"]}
    assert told["structured"] == [True, True]


def test_the_recipe_for_the_agents_sdk(desk):
    page = doc_pages.ROOT / "docs" / "clients.md"
    found = doc_pages.blocks(page)
    at = next(index for index, block in enumerate(found) if "from agents import" in block.text)
    with doc_pages.served(page, desk) as address:
        code = found[at].text.replace(doc_pages.SERVER, address)
        assert run_client("page_block.py", address, AGENTS, seconds=300, LLAMAFU_CODE=code) == found[at + 1].text


def test_litellm(url, alone):
    told = run_client("litellm_responses.py", url, LITELLM)
    wanted = alone.chat([HI], lora={"a": 1.0}, temperature=0, max_tokens=16)
    assert (told["text"], told["streamed"], told["status"]) == (wanted.text, wanted.text, "incomplete")
    assert told["call"][0] == "look"
    assert told["call"][1]["q"] in {"a", "b"}
