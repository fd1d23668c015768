"""A request as Claude Code sends it: its fields and their shapes, with texts of our own."""

HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
    "anthropic-dangerous-direct-browser-access": "true",
    "x-app": "cli",
    "user-agent": "claude-cli/2.0.0 (external, cli)",
}
_CACHED = {"cache_control": {"type": "ephemeral"}}
_TEXT = {"type": "string", "description": "text"}


def _tool(name, properties, required):
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return {"name": name, "description": f"What {name} does.\n\nUsage:\n- as told", "input_schema": schema}


TOOLS = [
    _tool("Task", {"description": _TEXT, "prompt": _TEXT, "subagent_type": _TEXT}, ["description", "prompt", "subagent_type"]),
    _tool(
        "Bash",
        {
            "command": _TEXT,
            "timeout": {"type": "number", "description": "milliseconds"},
            "run_in_background": {"type": "boolean"},
        },
        ["command"],
    ),
    _tool("Glob", {"pattern": _TEXT, "path": _TEXT}, ["pattern"]),
    _tool(
        "Grep",
        {
            "pattern": _TEXT,
            "output_mode": {"type": "string", "enum": ["content", "files_with_matches", "count"]},
            "-i": {"type": "boolean"},
            "head_limit": {"type": "number"},
        },
        ["pattern"],
    ),
    _tool("Read", {"file_path": _TEXT, "offset": {"type": "number"}, "limit": {"type": "number"}}, ["file_path"]),
    _tool(
        "Edit",
        {
            "file_path": _TEXT,
            "old_string": _TEXT,
            "new_string": _TEXT,
            "replace_all": {"type": "boolean", "default": False},
        },
        ["file_path", "old_string", "new_string"],
    ),
    _tool("WebFetch", {"url": {"type": "string", "format": "uri"}, "prompt": _TEXT}, ["url", "prompt"]),
    _tool(
        "TodoWrite",
        {
            "todos": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "content": {"type": "string", "minLength": 1},
                        "status": {"type": "string", "enum": ["pending", "in_progress", "completed"]},
                    },
                    "required": ["content", "status"],
                    "additionalProperties": False,
                },
            }
        },
        ["todos"],
    ),
    _tool("ExitPlanMode", {}, []),
]
BODY = {
    "model": "claude-sonnet-4-5-20250929",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nAs you answer, keep to the point.\n</system-reminder>\n"},
                {"type": "text", "text": "What is in a.txt?", **_CACHED},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I read it.", "signature": "c2ln"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_01", "name": "Read", "input": {"file_path": "/a.txt"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"tool_use_id": "toolu_01", "type": "tool_result", "content": "File does not exist.", "is_error": True},
                {"type": "text", "text": "<system-reminder>\nMind the list.\n</system-reminder>", **_CACHED},
            ],
        },
    ],
    "system": [
        {"type": "text", "text": "You are an agent in a terminal.", **_CACHED},
        {
            "type": "text",
            "text": "\nYou help with programs.\n# Tone\nBe brief.",
            "cache_control": {"type": "ephemeral", "ttl": "1h"},
        },
    ],
    "tools": TOOLS,
    "metadata": {"user_id": "user_0_account__session_1"},
    "max_tokens": 32000,
    "thinking": {"budget_tokens": 31999, "type": "enabled"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "stream": True,
}
