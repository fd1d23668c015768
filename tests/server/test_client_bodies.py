"""Bodies as widely used clients send them by default: each is answered, and what nothing here reads is named in a header.

Field names and shapes are the clients' own, values are ours. Recorded from the packages: openai 3.57.0, langchain-openai 1.7.4
(but for token ids, which its embeddings make with a tokenizer from the network), litellm 1.110.2. Read from source: Cline
0162b828 (`openai.ts`), Continue 0228b897 (`openaiTypeConverters.ts`), LibreChat 00b3bc32 (`llm.ts`, sent by LangChain's
JavaScript package), SillyTavern ba6f7b7a (`chat-completions.js`, source "custom"; `textgen-settings.js`), Open WebUI 074d4883
(`tasks.py`: the titles of chats). Open WebUI's first one has every field that its page sends; its backend takes some out again,
which ones depends on its version. SillyTavern's texts are at the values of its default preset. Chainlit has no body of its own:
it is that of its cookbook, by the openai package. Those that call have a tool, a call and its result.
"""

import httpx
import pytest
from helpers import one_server
from helpers.serving import API, serving

shared = one_server.shared
url = one_server.url
engine = one_server.engine

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
USAGE = {"include_usage": True}
HISTORY = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "ahoy there"},
]
LOOK_UP = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
EVENT = {
    "properties": {
        "name": {"title": "Name", "type": "string"},
        "day": {"anyOf": [{"type": "string"}, {"type": "null"}], "title": "Day"},
    },
    "required": ["name", "day"],
    "title": "CalendarEvent",
    "type": "object",
    "additionalProperties": False,
}

OPEN_WEBUI = {
    "stream": True,
    "model": "smol",
    "messages": [{"role": "user", "content": "ahoy there"}],
    "params": {},
    "files": [],
    "filter_ids": [],
    "tool_ids": [],
    "tool_servers": [],
    "features": {"voice": False, "image_generation": False, "code_interpreter": False, "web_search": False},
    "variables": {"{{USER_NAME}}": "Ann", "{{CURRENT_DATE}}": "2026-01-31"},
    "model_item": {"id": "smol", "name": "smol", "object": "model", "owned_by": "openai", "tags": []},
    "session_id": "FyWcDxyx9mUvXQw8AAAB",
    "chat_id": "0b5d2f0e-6a64-4d0f-93a7-2c2f8c0ad1d1",
    "id": "9a1f3c58-0d3a-4f57-a7d4-3e0e8d7bb0c4",
    "background_tasks": {"title_generation": True, "tags_generation": True, "follow_up_generation": True},
    "stream_options": USAGE,
    "metadata": {"chat_id": "0b5d2f0e", "task": None},
}
CLINE = {
    "model": "smol",
    "messages": [
        {"role": "system", "content": "You are Cline."},
        {"role": "user", "content": [{"type": "text", "text": "<task>\nahoy\n</task>"}, {"type": "text", "text": "there"}]},
    ],
    "temperature": 0,
    "stream": True,
    "stream_options": USAGE,
}
CONTINUE = {
    "messages": [{"role": "user", "content": "ahoy there"}],
    "model": "smol",
    "max_tokens": 4096,
    "temperature": 0.5,
    "top_p": None,
    "frequency_penalty": None,
    "presence_penalty": None,
    "stream": True,
    "stop": [],
    "prediction": {"type": "content", "content": "ahoy"},
    "tools": [
        {
            "type": "function",
            "function": {"name": "grep", "description": "Find text.", "parameters": LOOK_UP, "strict": None},
        }
    ],
}
CONTINUE_TAB = {
    "prompt": "ahoy there",
    "model": "smol",
    "max_tokens": 256,
    "temperature": 0.01,
    "stream": True,
    "stop": ["/src/", "#- coding: utf-8", "```"],
}
CHAINLIT = {
    "messages": HISTORY,
    "model": "smol",
    "temperature": 0.7,
    "max_tokens": 500,
    "top_p": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "stream": True,
}
SILLYTAVERN = {
    "messages": [
        {"role": "system", "content": "Write Ann's next reply in a fictional chat."},
        {"role": "system", "content": "[Start a new Chat]"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "ahoy there"},
    ],
    "model": "smol",
    "temperature": 1,
    "max_tokens": 300,
    "stream": True,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "top_p": 1,
    "stop": [],
    "logit_bias": {},
    "n": 1,
}
SILLYTAVERN_TEXT = {
    "prompt": "ahoy there",
    "model": "smol",
    "max_new_tokens": 250,
    "max_tokens": 250,
    "temperature": 0.7,
    "top_p": 0.5,
    "typical_p": 1,
    "typical": 1,
    "sampler_seed": -1,
    "min_p": 0,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "top_k": 40,
    "skew": 0,
    "min_tokens": 0,
    "add_bos_token": True,
    "smoothing_factor": 0,
    "smoothing_curve": 1,
    "dry_allowed_length": 2,
    "dry_multiplier": 0,
    "dry_base": 1.75,
    "dry_sequence_breakers": '["\\n", ":", "\\"", "*"]',
    "dry_penalty_last_n": 0,
    "max_tokens_second": 0,
    "stopping_strings": ["\nAnn:"],
    "stop": ["\nAnn:"],
    "truncation_length": 2048,
    "ban_eos_token": False,
    "skip_special_tokens": True,
    "include_reasoning": True,
    "top_a": 0,
    "tfs": 1,
    "mirostat_mode": 0,
    "mirostat_tau": 5,
    "mirostat_eta": 0.1,
    "custom_token_bans": "",
    "banned_strings": [],
    "api_server": "http://127.0.0.1:8080",
    "xtc_threshold": 0.1,
    "xtc_probability": 0,
    "nsigma": 0,
    "top_n_sigma": 0,
    "rep_pen": 1.2,
    "rep_pen_range": 0,
    "repetition_penalty_range": 0,
    "seed": -1,
    "guidance_scale": 1,
    "negative_prompt": "",
    "grammar_string": "",
    "repeat_penalty": 1.2,
    "tfs_z": 1,
    "repeat_last_n": 0,
    "n_predict": 250,
    "num_predict": 250,
    "num_ctx": 2048,
    "mirostat": 0,
    "ignore_eos": False,
    "rep_pen_slope": 1,
    "stream": True,
}
"""What it sends to every kind of server for texts; `nsigma`, `top_n_sigma` and `include_reasoning` are of later versions."""
SILLYTAVERN_TABBY = {
    **SILLYTAVERN_TEXT,
    "api_type": "tabby",
    "repetition_decay": 0,
    "temperature_last": True,
    "speculative_ngram": False,
    "json_schema": {},
}
SILLYTAVERN_OOBA = {
    **SILLYTAVERN_TEXT,
    "api_type": "ooba",
    "min_length": 0,
    "num_beams": 1,
    "length_penalty": 1,
    "early_stopping": False,
    "sampler_priority": ["repetition_penalty", "temperature", "top_k", "top_p", "min_p"],
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "legacy_api": False,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "penalty_alpha": 0,
    "temperature_last": True,
    "do_sample": True,
}
SILLYTAVERN_VLLM = {
    **{name: value for name, value in SILLYTAVERN_TEXT.items() if name != "seed"},
    "api_type": "vllm",
    "n": 1,
    "best_of": 1,
    "spaces_between_special_tokens": True,
}
LIBRECHAT = {
    "model": "smol",
    "user": "66a1f0c2e4b0a1b2c3d4e5f6",
    "stream": True,
    "stream_options": USAGE,
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "ahoy"}]}],
}
LANGCHAIN = {
    "messages": [
        {"content": "Be brief.", "role": "system"},
        {"content": "hello", "role": "user", "name": "ann"},
        {"content": None, "role": "assistant", "tool_calls": [
            {"type": "function", "id": "call_1", "function": {"name": "look_up", "arguments": '{"query": "ahoy"}'}},
        ]},
        {"content": "ahoy there", "role": "tool", "tool_call_id": "call_1"},
    ],
    "model": "smol",
    "stream": False,
    "tools": [{"type": "function", "function": {"name": "look_up", "description": "Look up.", "parameters": LOOK_UP}}],
}  # fmt: skip
LANGCHAIN_EMBEDDINGS = {"input": [[97, 98], [99]], "model": "smol", "encoding_format": "base64"}
OPENAI_PARSE = {
    "messages": HISTORY,
    "model": "smol",
    "response_format": {
        "type": "json_schema",
        "json_schema": {"schema": EVENT, "name": "CalendarEvent", "strict": True},
    },
    "stream": False,
}
LANGCHAIN_JSON_MODE = {"model": "smol", "stream": False, "messages": HISTORY, "response_format": {"type": "json_object"}}
LITELLM = {"model": "smol", "messages": HISTORY, "stream": True}
LITELLM_EMBEDDINGS = {"model": "smol", "input": ["ahoy"]}

LOOK_UP_TOOL = {"type": "function", "function": {"name": "look_up", "description": "Look up.", "parameters": LOOK_UP}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"query": "ahoy"}'}}
CALLED = [
    {"role": "user", "content": "look it up"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "ahoy there"},
]
"""A call and its result, as clients send them back that leave the content of an answer without text out."""
OPEN_WEBUI_TITLES = {
    "model": "smol",
    "messages": [{"role": "user", "content": "### Task:\nGenerate a title.\n<chat_history>ahoy there</chat_history>"}],
    "stream": False,
    "max_completion_tokens": 1000,
    "metadata": {"task": "title_generation", "task_body": {"model": "smol", "messages": HISTORY}, "chat_id": None},
}
OPEN_WEBUI_CALLING = {
    "stream": True,
    "model": "smol",
    "messages": [
        CALLED[0],
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "index": 0}]},
        CALLED[2],
    ],
    "tools": [LOOK_UP_TOOL],
    "stream_options": USAGE,
    "max_tokens": 200,
}
CLINE_CALLING = {
    "model": "smol",
    "messages": [
        {"role": "system", "content": "You are Cline."},
        CALLED[0],
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
        CALLED[2],
    ],
    "temperature": 0,
    "stream": True,
    "stream_options": USAGE,
    "tools": [{"type": "function", "function": {**LOOK_UP_TOOL["function"], "strict": False}}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
}
CONTINUE_CALLING = {
    **CONTINUE,
    "messages": [CALLED[0], {"role": "assistant", "content": " ", "tool_calls": [CALL]}, CALLED[2]],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
}
SILLYTAVERN_CALLING = {
    **SILLYTAVERN,
    "messages": [
        {"role": "system", "name": "example_user", "content": "Ann: hello"},
        {"role": "system", "name": "example_assistant", "content": "hi"},
        *CALLED,
    ],
    "tools": [LOOK_UP_TOOL],
    "tool_choice": "auto",
}
LIBRECHAT_CALLING = {
    **LIBRECHAT,
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "look it up"}]},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "ahoy there", "tool_call_id": "call_1"},
    ],
    "tools": [LOOK_UP_TOOL],
}

IGNORED_OF_OPEN_WEBUI = (
    *("params", "files", "filter_ids", "tool_ids", "tool_servers", "features", "variables", "model_item", "session_id"),
    *("chat_id", "id", "background_tasks"),
)
IGNORED_OF_SILLYTAVERN = (
    *("sampler_seed", "max_tokens_second", "truncation_length", "include_reasoning", "api_server", "num_predict", "num_ctx"),
    *("rep_pen_slope", "api_type"),
)
BODIES = {
    "Open WebUI": (CHAT, OPEN_WEBUI, IGNORED_OF_OPEN_WEBUI),
    "Open WebUI, titles": (CHAT, OPEN_WEBUI_TITLES, ()),
    "Open WebUI, calling": (CHAT, OPEN_WEBUI_CALLING, ()),
    "Cline": (CHAT, CLINE, ()),
    "Cline, calling": (CHAT, CLINE_CALLING, ()),
    "Continue": (CHAT, CONTINUE, ()),
    "Continue, calling": (CHAT, CONTINUE_CALLING, ()),
    "Continue, completing": (TEXT, CONTINUE_TAB, ()),
    "Chainlit": (CHAT, CHAINLIT, ()),
    "SillyTavern": (CHAT, SILLYTAVERN, ()),
    "SillyTavern, calling": (CHAT, SILLYTAVERN_CALLING, ()),
    "SillyTavern, TabbyAPI": (TEXT, SILLYTAVERN_TABBY, (*IGNORED_OF_SILLYTAVERN, "repetition_decay", "speculative_ngram")),
    "SillyTavern, Oobabooga": (TEXT, SILLYTAVERN_OOBA, (*IGNORED_OF_SILLYTAVERN, "sampler_priority", "legacy_api")),
    "SillyTavern, vLLM": (TEXT, SILLYTAVERN_VLLM, (*IGNORED_OF_SILLYTAVERN, "spaces_between_special_tokens")),
    "LibreChat": (CHAT, LIBRECHAT, ()),
    "LibreChat, calling": (CHAT, LIBRECHAT_CALLING, ()),
    "LangChain": (CHAT, LANGCHAIN, ()),
    "LangChain, with_structured_output": (CHAT, LANGCHAIN_JSON_MODE, ()),
    "LangChain, embedding": (EMBED, LANGCHAIN_EMBEDDINGS, ()),
    "openai, parse": (CHAT, OPENAI_PARSE, ()),
    "LiteLLM": (CHAT, LITELLM, ()),
    "LiteLLM, embedding": (EMBED, LITELLM_EMBEDDINGS, ()),
}


@pytest.fixture
def client(url, engine):
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {API}"}) as found:
        yield found


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("with_version", [True, False])
def test_what_clients_send_is_answered(client, engine, name, with_version):
    path, body, ignored = BODIES[name]
    answer = client.post(path if with_version else path.removeprefix("/v1"), json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("llamafu-ignored", "") == ", ".join(ignored)
    if path != EMBED:
        assert "ahoy" in answer.text
        assert engine.asked[0][1].get("max_tokens", 128) == (body.get("max_tokens") or body.get("max_completion_tokens") or -1)


def test_an_empty_schema_asks_for_nothing(client, engine):
    assert client.post(TEXT, json=SILLYTAVERN_TABBY).status_code == 200
    assert "json_schema" not in engine.asked[0][1]


def test_a_strict_server_refuses_what_it_does_not_know(engine):
    with serving(engine, strict=True) as address, httpx.Client(base_url=address, headers={"X-Api-Key": API}) as client:
        for name, (path, body, ignored) in BODIES.items():
            answer = client.post(path, json=body)
            assert answer.status_code == (400 if ignored else 200), (name, answer.text)
            assert all(f"'{field}' is not a field" in answer.text for field in ignored), name
            assert "llamafu-ignored" not in answer.headers
