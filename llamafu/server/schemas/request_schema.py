"""JSON Schemas of the bodies that the server reads, made of what reads them where that can be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.server.schemas.content import MESSAGES_SCHEMA
from llamafu.server.schemas.requests import LORA_SCHEMA, NEUTRAL, WITHOUT_EFFECT, ChatBody, CompletionBody, names_of

if TYPE_CHECKING:
    from llamafu.server.schemas.requests import GenerationBody

Schema = dict[str, Any]

REF = "#/components/schemas/{model}"
_ANY: Schema = {}
_NAME: Schema = {"type": "string", "minLength": 1}
_FLAG: Schema = {"type": ["boolean", "null"]}


def generation_schemas() -> dict[str, Schema]:
    """Return the schemas of the bodies that generate, by name, with what they refer to."""
    found: dict[str, Schema] = {}
    for kind in (CompletionBody, ChatBody):
        schema = kind.model_json_schema(ref_template=REF)
        found |= schema.pop("$defs", {})
        found[kind.__name__] = _with_every_name(kind, schema)
    return found


def service_schemas(scale_range: tuple[float, float]) -> dict[str, Schema]:
    """Return the schemas of the other bodies, by name; scales are legal within `scale_range`."""
    low, high = scale_range
    scale = {"type": ["number", "null"], "minimum": low, "maximum": high}
    ids: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    texts: Schema = {"anyOf": [_NAME, ids, {"type": "array", "items": {"anyOf": [_NAME, ids]}, "minItems": 1}]}
    info = closed({"name": _NAME, "scaling": scale}, ["name"])
    entry = closed(
        {
            "id": {"type": ["integer", "null"], "minimum": 0},
            "name": {"type": ["string", "null"], "minLength": 1},
            "scale": scale,
        },
        anyOf=[{"required": ["id"]}, {"required": ["name"]}],
    )
    return {
        "LoraLoadRequest": closed({"loras": {"type": "array", "items": info, "minItems": 1}, "skip_queue": _FLAG}, ["loras"]),
        "NumberedScales": {"type": "array", "items": entry},
        "VllmLoadRequest": closed(
            {"lora_name": _NAME, "lora_path": _NAME, "lora_int_id": _ANY, "base_model_name": _ANY, "load_inplace": _ANY},
            ["lora_name", "lora_path"],
        ),
        "VllmUnloadRequest": closed({"lora_name": _NAME, "lora_int_id": _ANY}, ["lora_name"]),
        "EncodeRequest": closed(
            {
                "text": {"anyOf": [{"type": "string"}, MESSAGES_SCHEMA]},
                "add_bos_token": _FLAG,
                "encode_special_tokens": _FLAG,
                "decode_special_tokens": _ANY,
                "model": _ANY,
            },
            ["text"],
        ),
        "DecodeRequest": closed(
            {
                "tokens": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                "decode_special_tokens": _FLAG,
                "add_bos_token": _ANY,
                "encode_special_tokens": _ANY,
                "model": _ANY,
            },
            ["tokens"],
        ),
        "EmbeddingRequest": closed(
            {
                "input": texts,
                "dimensions": {"type": ["integer", "null"], "minimum": 1},
                "encoding_format": {"enum": ["float", "base64", None]},
                "model": {"type": ["string", "null"], "minLength": 1},
                "lora": or_null(LORA_SCHEMA),
                "user": _ANY,
            },
            ["input"],
        ),
        "UploadForm": closed(
            {"file": {"type": "string", "format": "binary", "description": "a GGUF adapter"}, "name": {"type": "string"}},
            ["file"],
        ),
    }


def closed(properties: dict[str, Schema], required: list[str] | None = None, **more: Any) -> Schema:
    """Return the schema of an object that has these properties and no others."""
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False, **more}
    return {**found, "required": required} if required else found


def _with_every_name(kind: type[GenerationBody], schema: Schema) -> Schema:
    """Add what the reader takes beside the fields themselves: other names for them, null, and fields that ask for nothing."""
    required = set(schema.get("required", []))
    properties: dict[str, Schema] = {}
    for names in names_of(kind):
        wanted = {key: value for key, value in schema["properties"][names[0]].items() if key not in {"title", "default"}}
        for name in names:
            properties[name] = wanted if name in required else or_null(wanted)
    properties |= {name: {"enum": [value, None]} for name, value in NEUTRAL.items()}
    properties |= {name: {"description": "taken, without effect"} for name in sorted(WITHOUT_EFFECT)}
    return {**schema, "properties": properties}


def or_null(schema: Schema) -> Schema:
    """Return the schema of the same or null."""
    choices = schema.get("anyOf", [])
    return schema if {"type": "null"} in choices else {"anyOf": [*(choices or [schema]), {"type": "null"}]}
