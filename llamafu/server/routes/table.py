"""Every route of the server: the application, the OpenAPI document and the checks of the manual are made of this table."""

from __future__ import annotations

from typing import Any

from llamafu.server.routes.route import TEXT, Route
from llamafu.server.schemas import answers
from llamafu.server.schemas import generation_answers as generated
from llamafu.server.schemas.adapter_choice import NumberedScales
from llamafu.server.schemas.adapter_requests import LoraLoadBody, UploadForm, VllmLoadRequest, VllmUnloadRequest
from llamafu.server.schemas.requests import ChatBody, CompletionBody
from llamafu.server.schemas.text_requests import DecodeRequest, EmbeddingRequest, EncodeRequest

_WITH = "`lora` says with which adapters, else `model`, else the active set is used."

# fmt: off
_ROWS = (
    Route("GET", ("/",), None, lambda to: to.page.page,
          "The mixing desk, a web page.",
          answer_types=("text/html",)),
    Route("GET", ("/desk/{file}",), None, lambda to: to.page.file,
          "What the mixing desk is made of.",
          answer_types=("text/css", "text/javascript", "image/svg+xml"), refusals=(404,)),
    Route("GET", ("/health",), None, lambda to: to.monitoring.health,
          "Whether the server is up.",
          answer=answers.HealthAnswer),
    Route("GET", ("/openapi.json",), None, lambda to: to.monitoring.document,
          "This document.",
          answer=answers.DocumentAnswer),
    Route("GET", ("/metrics",), "api", lambda to: to.monitoring.metrics,
          "Counts for Prometheus.",
          answer_types=(TEXT,)),
    Route("GET", ("/v1/models", "/models", "/v1/model/list"), "api", lambda to: to.models.models,
          "The base model and every adapter.",
          answer=answers.ModelsAnswer),
    Route("GET", ("/v1/models/{name}", "/models/{name}"), "api", lambda to: to.models.model,
          "The base model, which is `current` too, or one adapter.",
          answer=answers.ModelAnswer, refusals=(404,)),
    Route("GET", ("/v1/model",), "api", lambda to: to.models.base,
          "The base model, as TabbyAPI's clients ask for the one that is loaded.",
          answer=answers.ModelAnswer),
    Route("GET", ("/v1/auth/permission",), "api", lambda to: to.models.permission,
          "Which right the key has; admin where the server takes no keys.",
          answer=answers.PermissionAnswer),
    Route("POST", ("/v1/completions", "/completions"), "api", lambda to: to.generation.completions,
          f"Complete a prompt. {_WITH}",
          body=CompletionBody, answer=generated.CompletionAnswer, chunk=generated.CompletionChunk, refusals=(404, 429)),
    Route("POST", ("/v1/chat/completions", "/chat/completions"), "api", lambda to: to.generation.chats,
          f"Answer a chat. {_WITH}",
          body=ChatBody, answer=generated.ChatCompletionAnswer, chunk=generated.ChatCompletionChunk, refusals=(404, 429)),
    Route("POST", ("/v1/embeddings", "/embeddings"), "api", lambda to: to.embeddings.embeddings,
          f"Vectors for texts. {_WITH}",
          body=EmbeddingRequest, answer=generated.EmbeddingsAnswer, refusals=(404, 429)),
    Route("POST", ("/v1/token/encode", "/v1/tokens/encode"), "api", lambda to: to.models.encode,
          "The tokens of a text, or of the messages of a chat.",
          body=EncodeRequest, answer=answers.TokensAnswer),
    Route("POST", ("/v1/token/decode", "/v1/tokens/decode"), "api", lambda to: to.models.decode,
          "The text of tokens.",
          body=DecodeRequest, answer=answers.TextAnswer),
    Route("GET", ("/v1/loras", "/v1/lora/list"), "api", lambda to: to.adapters.all,
          "Adapters: all for an admin key, the active ones for an api key.",
          answer=answers.LoraListAnswer),
    Route("GET", ("/v1/lora", "/v1/loras/active"), "api", lambda to: to.adapters.active,
          "The adapters that act when a request names none.",
          answer=answers.LoraListAnswer),
    Route("POST", ("/v1/lora/load", "/v1/loras/load"), "admin", lambda to: to.adapters.load,
          "Replace the active set in one step.",
          body=LoraLoadBody, answer=answers.LoraLoadAnswer, refusals=(404,)),
    Route("POST", ("/v1/lora/unload",), "admin", lambda to: to.adapters.unload,
          "Empty the active set.",
          answer=answers.NothingAnswer),
    Route("DELETE", ("/v1/loras/active",), "admin", lambda to: to.adapters.unload,
          "Empty the active set.",
          answer=answers.NothingAnswer),
    Route("POST", ("/v1/lora/upload",), "admin", lambda to: to.upload.upload,
          "Take a GGUF adapter into the folder.",
          form=UploadForm, answer=answers.LoraCardAnswer, refusals=(404,)),
    Route("GET", ("/v1/lora/{name}/info",), "api", lambda to: to.info.info,
          "What an adapter is, and the norms of its changes: any for an admin key, an active one for an api key.",
          answer=answers.LoraInfoAnswer, refusals=(403, 404)),
    Route("DELETE", ("/v1/lora/{name}",), "admin", lambda to: to.adapters.delete,
          "Delete an adapter from the folder; refused while it is active.",
          answer=answers.DeletedAnswer, refusals=(404, 409)),
    Route("POST", ("/v1/load_lora_adapter",), "admin", lambda to: to.adapters.add_vllm,
          "vLLM's way to register an adapter of the folder.",
          body=VllmLoadRequest, answer_types=(TEXT,), refusals=(404,)),
    Route("POST", ("/v1/unload_lora_adapter",), "admin", lambda to: to.adapters.remove_vllm,
          "vLLM's way to take an adapter out of the active set.",
          body=VllmUnloadRequest, answer_types=(TEXT,), refusals=(404,)),
    Route("GET", ("/lora-adapters",), "api", lambda to: to.adapters.numbered,
          "llama-server's list of adapters.",
          answer=answers.NumberedAnswer),
    Route("POST", ("/lora-adapters",), "admin", lambda to: to.adapters.set_numbered,
          "llama-server's way to set every scale; adapters that are not named are off.",
          body=NumberedScales, answer=answers.SuccessAnswer, refusals=(404,)),
)
# fmt: on
ROUTES: tuple[Route[Any], ...] = _ROWS
"""The rows as one type; each by itself was checked: its handler takes the model that is its body."""
