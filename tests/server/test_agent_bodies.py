"""Bodies of agents, pages for chats and home automation, with the field names and shapes that they send by default.

Written down from their sources and from logs in public issues; values are ours. `test_client_bodies.py` has further ones,
recorded. Of each: where it goes, the body, and what nothing here reads.
"""

import httpx
import pytest
from helpers import one_server
from helpers.serving import API, serving

from llamafu.generation.messages import read_messages
from llamafu.server.schemas.anthropic_requests import MessagesBody
from llamafu.server.schemas.ignored_fields import IgnoredFields
from llamafu.server.schemas.reading import read_body
from llamafu.server.schemas.requests import ChatBody, CompletionBody
from llamafu.service import InvalidRequestError

shared = one_server.shared
url = one_server.url
engine = one_server.engine

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
USAGE = {"include_usage": True}
CACHED = {"cache_control": {"type": "ephemeral"}}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "ahoy there"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "ahoy"}, {"type": "text", "text": "there"}]}
QUERY = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Look up.", "parameters": QUERY}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"query": "ahoy"}'}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "ahoy"}
STREAMED = {"model": "smol", "stream": True, "stream_options": USAGE}
SAMPLERS = {
    "dynatemp_range": 0,
    "dynatemp_exponent": 1,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "xtc_probability": 0,
    "xtc_threshold": 0.1,
    "repeat_last_n": 64,
    "repeat_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "dry_multiplier": 0,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": -1,
}
LLAMA_SERVERS_PAGE = {
    "messages": [{"role": "user", "content": "ahoy"}, {"role": "assistant", "content": "x", "reasoning_content": "y"}, USER],
    "stream": True,
    "return_progress": True,
    "reasoning_format": "auto",
    "temperature": 0.8,
    "max_tokens": -1,
    "typ_p": 1,
    **SAMPLERS,
    "samplers": ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"],
    "backend_sampling": False,
    "timings_per_token": True,
}
SILLYTAVERN = {
    "prompt": "ahoy there",
    "model": "smol",
    "n_predict": 9,
    "typical_p": 1,
    "min_keep": 0,
    "grammar": "",
    "n_probs": 0,
    **SAMPLERS,
    "samplers": ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature", "adaptive_p"],
    "adaptive_target": -0.01,
    "adaptive_decay": 0.9,
    "logit_bias": [],
    "cache_prompt": True,
    "stream": True,
}
ROO = {
    **STREAMED,
    "messages": [
        {"role": "system", "content": "Be brief."},
        PARTS,
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
        {**RESULT, "content": "ahoy there"},
    ],
    "temperature": 0,
    "tools": [TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning_effort": "medium",
    "thinking": {"type": "enabled"},
}
OPENROUTERS = {
    **STREAMED,
    "messages": [USER, {"role": "assistant", "content": "x", "reasoning": "hm", "reasoning_details": [{"text": "hm"}]}, USER],
    "transforms": ["middle-out"],
}
OPENHANDS = {
    "model": "smol",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief.", **CACHED}]},
        {"role": "user", "content": [{"type": "text", "text": "ahoy"}]},
        {"role": "assistant", "content": [], "tool_calls": [CALL]},
        {**RESULT, "content": [{"type": "text", "text": "ahoy there"}], "name": "look_up"},
    ],
    "tools": [TOOL],
    "max_completion_tokens": 100,
    "reasoning_effort": "high",
    "metadata": {"session_id": "x"},
}
ZED = {
    **STREAMED,
    "messages": [SYSTEM, PARTS, {"role": "assistant", "content": None, "tool_calls": [CALL]}, USER],
    "max_completion_tokens": 200,
    "stop": [],
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [TOOL],
    "parallel_tool_calls": False,
    "prompt_cache_key": "t",
}
QWEN_CODE = {
    **STREAMED,
    "messages": [{"role": "system", "content": [{"type": "text", "text": "x", **CACHED}]}, USER],
    "tools": [TOOL],
    "metadata": {"sessionId": "a", "promptId": "b"},
    "vl_high_resolution_images": True,
}
LOBECHAT = {
    **STREAMED,
    "messages": [SYSTEM, USER],
    "temperature": 1,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "apiMode": "chatCompletion",
    "enable_thinking": False,
    "thinking_budget": 0,
}
DIFY = {
    "model": "smol",
    "stream": True,
    "messages": [SYSTEM, USER],
    "temperature": 0.7,
    "max_tokens": 512,
    "user": "abc",
    "tools": [TOOL],
    "tool_choice": "auto",
    "enable_thinking": True,
    "chat_template_kwargs": {"enable_thinking": True, "thinking": True},
}
SMOLAGENTS = {
    "model": "smol",
    "messages": [PARTS],
    "stop": ["Observation:", "Calling tools:"],
    "tools": [TOOL],
    "tool_choice": "required",
}
OPENAI = {
    **STREAMED,
    "messages": [
        {"role": "developer", "content": "x"},
        {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": []}]},
        {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None, "function_call": None},
        USER,
    ],
    "store": False,
    "service_tier": "auto",
    "modalities": ["text"],
    "verbosity": "medium",
    "reasoning_effort": "none",
    "tools": [TOOL],
    "logit_bias": {},
    "logprobs": False,
    "prompt_cache_key": "k",
    "safety_identifier": "x",
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "look_up"}}]},
    },
}
STOPS = ["<|fim_prefix|>", "<|endoftext|>", "/src/", "#- coding: utf-8", "```"]
CONTINUE_IN_RUST = {
    "prompt": "ahoy there",
    "model": "smol",
    "max_tokens": 256,
    "temperature": 0.01,
    "stream": True,
    "stop": [
        *STOPS,
        *(f"\n{word}" for word in ("fn", "mod", "pub", "struct", "enum", "trait", "impl", "use", "const", "static")),
    ]
    * 2,
}
CODEX_TOOL = {"type": "function", "name": "exec_command", "description": "Runs.", "strict": False, "parameters": QUERY}
CODEX = {
    "model": "smol",
    "instructions": "You are Codex.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions instructions>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
        {
            "type": "message",
            "role": "assistant",
            "phase": "commentary",
            "content": [{"type": "output_text", "text": "I look."}],
        },
        {"type": "function_call", "name": "exec_command", "arguments": '{"query": "x"}', "call_id": "c1"},
        {"type": "function_call_output", "call_id": "c1", "output": "x"},
        {"type": "custom_tool_call", "status": "completed", "call_id": "c2", "name": "apply_patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "Done"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "ahoy there"}]},
    ],
    "tools": [
        CODEX_TOOL,
        {"type": "web_search", "external_web_access": False},
        {"type": "image_generation", "output_format": "png"},
        {
            "type": "custom",
            "name": "apply_patch",
            "description": "Edits.",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
        },
        {"type": "namespace", "name": "mcp__files", "description": "Files.", "tools": [CODEX_TOOL]},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199",
    "text": {"verbosity": "medium"},
    "client_metadata": {"x": "y"},
}
HOME_ASSISTANT = {
    "model": "smol",
    "max_output_tokens": 3000,
    "top_p": 1.0,
    "temperature": 1.0,
    "user": "01J",
    "store": False,
    "input": [{"type": "message", "role": "developer", "content": "x"}, {"type": "message", **USER}],
    "tools": [
        CODEX_TOOL,
        {"type": "web_search", "search_context_size": "medium", "user_location": {"type": "approximate", "city": "x"}},
    ],
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "reasoning": {"effort": "low", "summary": "auto"},
    "service_tier": "auto",
}
CLAUDE_CODE_SEARCHING = {
    "model": "smol",
    "max_tokens": 200,
    "stream": True,
    "metadata": {"user_id": "x"},
    "thinking": {"type": "adaptive"},
    "messages": [{"role": "user", "content": [{"type": "text", "text": "ahoy there", **CACHED}]}],
    "system": [{"type": "text", "text": "x", **CACHED}],
    "tools": [
        {"name": "Read", "description": "Reads.", "input_schema": QUERY, "eager_input_streaming": True},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    ],
    "output_config": {"effort": "medium"},
}
BODIES = {
    "llama-server's page": (CHAT, LLAMA_SERVERS_PAGE, "reasoning_format, backend_sampling"),
    "SillyTavern, llama.cpp": ("/completion", SILLYTAVERN, ""),
    "Roo Code": (CHAT, ROO, ""),
    "what OpenRouter's clients send": (CHAT, OPENROUTERS, "transforms, messages[1].reasoning_details"),
    "OpenHands": (CHAT, OPENHANDS, "messages[0].content[0].cache_control"),
    "Zed": (CHAT, ZED, ""),
    "Qwen Code": (CHAT, QWEN_CODE, "vl_high_resolution_images, messages[0].content[0].cache_control"),
    "LobeChat": (CHAT, LOBECHAT, "apiMode"),
    "Dify": (CHAT, DIFY, ""),
    "smolagents": (CHAT, SMOLAGENTS, ""),
    "openai": (CHAT, OPENAI, ""),
    "Continue, completing Rust": (TEXT, CONTINUE_IN_RUST, ""),
    "Codex CLI": (RESPONSES, CODEX, "tools[1], client_metadata"),
    "Home Assistant": (RESPONSES, HOME_ASSISTANT, "tools[1]"),
    "Claude Code, searching": (MESSAGES, CLAUDE_CODE_SEARCHING, "tools[1]"),
}


@pytest.fixture
def client(url, engine):
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {API}"}) as found:
        yield found


@pytest.mark.parametrize("name", BODIES)
def test_what_agents_send_is_answered(client, name):
    path, body, ignored = BODIES[name]
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("llamafu-ignored", "") == ignored
    assert "ahoy" in answer.text or name == "SillyTavern, llama.cpp"  # the fake engine reads tokens as bytes, BOS too


def test_a_strict_server_refuses_what_it_cannot_do(engine):
    with serving(engine, strict=True) as address, httpx.Client(base_url=address, headers={"X-Api-Key": API}) as client:
        for name, (path, body, ignored) in BODIES.items():
            answer = client.post(path, json=body)
            assert answer.status_code == (400 if ignored else 200), (name, answer.text)
            assert "llamafu-ignored" not in answer.headers


def read(kind=ChatBody, **fields):
    given = {"prompt": "a"} if kind is CompletionBody else {"messages": [USER]}
    return read_body(kind, {**given, **fields}, (0, 1), IgnoredFields())


@pytest.mark.parametrize(
    ("fields", "thinks", "budget"),
    [
        ({}, None, None),
        ({"enable_thinking": False}, False, 0),
        ({"enable_thinking": True}, True, None),
        ({"enable_thinking": True, "thinking_budget": 9}, True, 9),
        ({"thinking": {"type": "disabled"}}, False, 0),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, True, 9),
        ({"thinking": {"type": "auto"}}, None, None),
        ({"reasoning_effort": "none"}, False, 0),
        ({"reasoning_effort": "low"}, None, None),
        ({"reasoning_effort": "none", "enable_thinking": True}, True, None),
        ({"enable_thinking": False, "reasoning_budget": 5}, False, 5),
    ],
)
def test_how_clients_switch_the_reasoning(fields, thinks, budget):
    """Templates read one of two variables; where they read none, a budget of none ends the reasoning at once."""
    body = read(**fields)
    told = body.chat_options()["chat_template_kwargs"]
    assert (told.get("enable_thinking"), told.get("thinking")) == (thinks, thinks)
    assert body.options().get("reasoning_budget") == budget
    given = read(**fields, chat_template_kwargs={"enable_thinking": True}).chat_options()["chat_template_kwargs"]
    assert given["enable_thinking"] is True


def test_verbosity_goes_to_the_template():
    assert read(verbosity="low").chat_options()["chat_template_kwargs"] == {"verbosity": "low"}


def test_reasoning_in_the_history_by_its_other_name():
    problems = []
    [message, other] = read_messages(
        [{"role": "assistant", "content": "x", "reasoning": "hm"}, {**USER, "reasoning": "hm"}], problems
    )
    assert (problems, message["reasoning_content"], message["reasoning"]) == ([], "hm", "hm")
    assert "reasoning_content" not in other
    [message] = read_messages([{"role": "assistant", "content": "x", "reasoning": "a", "reasoning_content": "b"}], problems)
    assert message["reasoning_content"] == "b"


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        (
            ChatBody,
            {"chat_template": "{{ x }}"},
            "chat_template is '{{ x }}'; this server cannot do that: the model's own is used",
        ),
        (CompletionBody, {"max_length": 80}, "max_length is 80; this server cannot do that: give max_tokens"),
        (ChatBody, {"thinking": {"type": "on"}}, "thinking.type is 'on'; it should be"),
        (MessagesBody, {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].input_schema is missing"),
        (ChatBody, {"messages": [{**USER, "content": [{"type": "output_text"}]}]}, "messages[0].content[0].text is missing"),
    ],
)
def test_what_is_refused(kind, fields, told):
    with pytest.raises(InvalidRequestError) as caught:
        read(kind, **fields)
    assert caught.value.problems[0].startswith(told)
