"""JSON Schemas of what the server answers, by name. Later versions may add properties; clients pass over those."""

from __future__ import annotations

from typing import Any

from llamafu.server.http.error_body import OPENAI_TYPES
from llamafu.service.errors import KINDS

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_TIME: Schema = {"type": "integer", "minimum": 0, "description": "Unix time in seconds"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}


def ref(name: str) -> Schema:
    """Return a reference to the schema `name` of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def obj(properties: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    """Return the schema of an object whose properties are all there, but for the `optional` ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def const(value: str) -> Schema:
    """Return the schema of one text."""
    return {"const": value}


def listed(items: Schema) -> Schema:
    """Return the schema of a list in OpenAI's form."""
    return obj({"object": const("list"), "data": {"type": "array", "items": items}})


def answer_schemas() -> dict[str, Schema]:
    """Return every one of them."""
    end = {"finish_reason": {"enum": ["stop", "length", None]}}
    head = {"id": _TEXT, "created": _TIME, "model": _TEXT}
    applied = obj({"name": _TEXT, "digest": _TEXT, "scale": _NUMBER, "final_scale": _NUMBER})
    lora = {"type": "array", "items": applied, "description": "the adapters that made it"}
    text = obj({"index": _COUNT, "text": _TEXT, **end, "logprobs": _or_null(ref("TextLogprobs"))})
    said = obj({"role": const("assistant"), "content": _TEXT})
    chat = obj({"index": _COUNT, "message": said, **end, "logprobs": _or_null(ref("ChatLogprobs"))})
    part = obj({"role": const("assistant"), "content": _TEXT}, ("role", "content"))
    delta = obj({"index": _COUNT, "delta": part, **end, "logprobs": _or_null(ref("ChatLogprobs"))})
    model = {"id": _TEXT, "object": const("model"), "created": _TIME, "owned_by": _TEXT, "parent": _TEXT}
    card = {"id": _TEXT, "object": const("lora"), "created": _TIME, "owned_by": _TEXT, "scaling": _NUMBER}
    facts = {
        "size": {**_COUNT, "description": "bytes on the disk"},
        "last_used": {"type": ["number", "null"], "description": "Unix time in seconds; null when no use is known"},
        "digest": {**_TEXT, "description": "SHA-256 of the content"},
    }
    vector = {"anyOf": [{"type": "array", "items": _NUMBER}, {**_TEXT, "description": "little-endian float32 in base64"}]}
    return {
        "Error": _error(),
        "Health": obj({"status": const("healthy"), "issues": {"type": "array"}}),
        "Permission": obj({"permission": {"enum": ["admin", "api"]}}),
        "Model": obj(model, ("parent",)),
        "Models": listed(ref("Model")),
        "LoraCard": obj({**card, **facts}, ("scaling", *facts)),
        "LoraInfo": _info(facts["last_used"]),
        "LoraList": listed(ref("LoraCard")),
        "LoraLoadResponse": obj({"success": _TEXTS, "failure": _TEXTS}),
        "Document": {"type": "object"},
        "Nothing": {"type": "object", "properties": {}},
        "Deleted": obj({"id": _TEXT, "object": const("lora"), "deleted": {"const": True}}),
        "Numbered": {"type": "array", "items": obj({"id": _COUNT, "path": _TEXT, "scale": _NUMBER})},
        "Success": obj({"success": {"const": True}}),
        "Tokens": obj({"tokens": {"type": "array", "items": _WHOLE}, "length": _COUNT}),
        "Text": obj({"text": _TEXT}),
        "Usage": obj(
            {
                **dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT),
                "prompt_tokens_details": obj({"cached_tokens": _COUNT}),
            }
        ),
        "TextLogprobs": obj(
            {
                "tokens": _TEXTS,
                "token_logprobs": {"type": "array", "items": _NUMBER},
                "top_logprobs": {"type": "array", "items": {"type": "object", "additionalProperties": _NUMBER}},
                "text_offset": {"type": "array", "items": _COUNT},
            }
        ),
        "TokenLogprob": obj(_token()),
        "ChatLogprobs": obj(
            {
                "content": {
                    "type": "array",
                    "items": obj({**_token(), "top_logprobs": {"type": "array", "items": ref("TokenLogprob")}}),
                }
            }
        ),
        "Completion": obj({**head, "object": const("text_completion"), **_choices(text), "lora": lora}),
        "ChatCompletion": obj({**head, "object": const("chat.completion"), **_choices(chat), "lora": lora}),
        "CompletionChunk": obj({**head, "object": const("text_completion"), **_pieces(text), "lora": lora}, ("usage", "lora")),
        "ChatCompletionChunk": obj(
            {**head, "object": const("chat.completion.chunk"), **_pieces(delta), "lora": lora}, ("usage", "lora")
        ),
        "Embeddings": obj(
            {
                "object": const("list"),
                "model": _TEXT,
                "data": {
                    "type": "array",
                    "items": obj({"object": const("embedding"), "index": _COUNT, "embedding": vector}),
                },
                "usage": obj({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
            }
        ),
    }


def _info(last_used: Schema) -> Schema:
    table: Schema = {"type": "array", "items": {"type": "array", "items": _or_null(_NUMBER)}, "description": "[layer][module]"}
    norm = obj({"frobenius": _NUMBER, "spectral": _NUMBER})
    counts: Schema = {"type": "array", "items": _COUNT}
    others: Schema = {"type": "object", "additionalProperties": norm, "description": "modules outside the layers"}
    return obj(
        {
            "id": _TEXT,
            "object": const("lora.info"),
            "scaling": {"type": ["number", "null"], "description": "in the active set; null when it is not there"},
            "last_used": last_used,
            "digest": _TEXT,
            "architecture": _TEXT,
            "base_model": {"type": ["string", "null"]},
            "rank": _COUNT,
            "uniform": {"type": "boolean"},
            "alpha": _NUMBER,
            "targets": _TEXTS,
            "layers": counts,
            "parameters": _COUNT,
            "bytes": _COUNT,
            "dtype": _TEXT,
            "invocation_tokens": counts,
            "norms": obj({"layers": counts, "modules": _TEXTS, "frobenius": table, "spectral": table, "others": others}),
        },
        ("last_used",),
    )


def _choices(choice: Schema) -> dict[str, Schema]:
    return {"choices": {"type": "array", "items": choice, "minItems": 1}, "usage": ref("Usage")}


def _pieces(choice: Schema) -> dict[str, Schema]:
    return {"choices": {"type": "array", "items": choice, "maxItems": 1}, "usage": ref("Usage")}


def _token() -> dict[str, Schema]:
    return {"token": _TEXT, "logprob": _NUMBER, "bytes": {"type": "array", "items": {**_COUNT, "maximum": 255}}}


def _error() -> Schema:
    types = sorted({OPENAI_TYPES.get(code, code) for code in KINDS})
    error = obj({"message": _TEXT, "type": {"enum": types}, "param": {"type": "null"}, "code": {"enum": sorted(KINDS)}})
    return obj({"error": error, "detail": _TEXT, "message": _TEXT})


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}
