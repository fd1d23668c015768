"""What each route takes and answers, for the document that describes the server."""

from __future__ import annotations

from dataclasses import dataclass

JSON, FORM, TEXT, EVENTS = "application/json", "multipart/form-data", "text/plain", "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One of them. `body` and `answer` name schemas of the document; other types than JSON have none to name."""

    summary: str
    answer: str | None = None
    answer_types: tuple[str, ...] = (JSON,)
    chunk: str | None = None
    """The schema of the events, where the answer may be a stream of them instead."""
    body: str | None = None
    body_type: str = JSON
    refusals: tuple[int, ...] = ()
    """Statuses that it may answer beside those that follow from its key and its body."""


PAGE = Operation(summary="The mixing desk, a web page.", answer_types=("text/html",))
DESK_FILE = Operation(
    summary="What the mixing desk is made of.",
    answer_types=("text/css", "text/javascript", "image/svg+xml"),
    refusals=(404,),
)
DOCUMENT = Operation(summary="This document.", answer="Document")
HEALTH = Operation(summary="Whether the server is up.", answer="Health")
METRICS = Operation(summary="Counts for Prometheus.", answer_types=(TEXT,))
MODELS = Operation(summary="The base model and every adapter.", answer="Models")
MODEL = Operation(summary="The base model, which is `current` too, or one adapter.", answer="Model", refusals=(404,))
PERMISSION = Operation(summary="Which right the key has; admin where the server takes no keys.", answer="Permission")
COMPLETE = Operation(
    summary="Complete a prompt. `lora` says with which adapters, else `model`, else the active set is used.",
    answer="Completion",
    chunk="CompletionChunk",
    body="CompletionBody",
    refusals=(404, 429),
)
CHAT = Operation(
    summary="Answer a chat. `lora` says with which adapters, else `model`, else the active set is used.",
    answer="ChatCompletion",
    chunk="ChatCompletionChunk",
    body="ChatBody",
    refusals=(404, 429),
)
EMBED = Operation(
    summary="Vectors for texts. `lora` says with which adapters, else `model`, else the active set is used.",
    answer="Embeddings",
    body="EmbeddingRequest",
    refusals=(404, 429),
)
ENCODE = Operation(summary="The tokens of a text, or of the messages of a chat.", answer="Tokens", body="EncodeRequest")
DECODE = Operation(summary="The text of tokens.", answer="Text", body="DecodeRequest")
LIST = Operation(summary="Adapters: all for an admin key, the active ones for an api key.", answer="LoraList")
ACTIVE = Operation(summary="The adapters that act when a request names none.", answer="LoraList")
LOAD = Operation(
    summary="Replace the active set in one step.", answer="LoraLoadResponse", body="LoraLoadRequest", refusals=(404,)
)
UNLOAD = Operation(summary="Empty the active set.", answer="Nothing")
UPLOAD = Operation(
    summary="Take a GGUF adapter into the folder.", answer="LoraCard", body="UploadForm", body_type=FORM, refusals=(404,)
)
INFO = Operation(
    summary="What an adapter is, and the norms of its changes: any for an admin key, an active one for an api key.",
    answer="LoraInfo",
    refusals=(403, 404),
)
DELETE = Operation(
    summary="Delete an adapter from the folder; refused while it is active.", answer="Deleted", refusals=(404, 409)
)
ADD_VLLM = Operation(
    summary="vLLM's way to register an adapter of the folder.", answer_types=(TEXT,), body="VllmLoadRequest", refusals=(404,)
)
REMOVE_VLLM = Operation(
    summary="vLLM's way to take an adapter out of the active set.",
    answer_types=(TEXT,),
    body="VllmUnloadRequest",
    refusals=(404,),
)
NUMBERED = Operation(summary="llama-server's list of adapters.", answer="Numbered")
SET_NUMBERED = Operation(
    summary="llama-server's way to set every scale; adapters that are not named are off.",
    answer="Success",
    body="NumberedScales",
    refusals=(404,),
)
