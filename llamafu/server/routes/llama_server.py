"""llama-server's own routes that generate, and its facts of the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu._version import __version__
from llamafu.engine.request import Request
from llamafu.generation.infill import InfillText
from llamafu.generation.line_limits import LineLimits
from llamafu.generation.options import REST_OF_CONTEXT, Options
from llamafu.server.http.sse import WITHOUT_DONE
from llamafu.server.routes.prompt_tokens import demand_infill, infill_tokens, mixed_tokens
from llamafu.server.schemas.llama_answers import GenerationDefaults, Modalities, PropsAnswer
from llamafu.server.schemas.llama_writer import LlamaWriter, generation_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.types import ASGIApp

    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.routes.generation import GenerationRoutes
    from llamafu.server.schemas.llama_requests import InfillBody, LlamaBody, LlamaCompletionBody
    from llamafu.server.schemas.mixed_prompts import MixedPrompt
    from llamafu.server.settings import Settings
    from llamafu.server.storage.catalog import Catalog

    Tokens = Callable[[], list[int]]
    """Makes the tokens of a prompt; takes a while."""


class LlamaServerRoutes:
    """Handlers over one engine; `generation` queues requests and answers them. `base` is the base model's id."""

    def __init__(
        self, engine: ServedEngine, catalog: Catalog, generation: GenerationRoutes, *, base: str, settings: Settings
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._generation = generation
        self._base = base
        self._model = Path(settings.model)
        self._at_a_time = settings.max_sequences

    async def completion(self, request: AuthedRequest[LlamaCompletionBody]) -> ASGIApp:
        """`POST /completion`."""

        def tokens_of(parts: MixedPrompt) -> Tokens:
            return lambda: mixed_tokens(self._engine, parts, add_special=True, parse_special=True)

        return await self._answer(request, [tokens_of(parts) for parts in request.body.prompt])

    async def infill(self, request: AuthedRequest[InfillBody]) -> ASGIApp:
        """`POST /infill`: what comes between a prefix and a suffix."""
        body = request.body
        files = [(one.filename, one.text) for one in body.input_extra]
        text = InfillText(body.input_prefix + body.prompt, body.input_suffix, files)
        demand_infill(self._engine)
        longest = body.options()["max_tokens"]
        return await self._answer(request, [lambda: infill_tokens(self._engine, text, longest)])

    async def props(self, request: AuthedRequest[None]) -> PropsAnswer:  # noqa: ARG002 - a handler
        """`GET /props`."""
        facts = self._engine.model_facts
        options = Options(max_tokens=REST_OF_CONTEXT)
        defaults = {**generation_settings(options, seed=None, stream=False), "lora": []}
        return PropsAnswer(
            default_generation_settings=GenerationDefaults(n_ctx=facts.context_length, params=defaults),
            total_slots=self._at_a_time,
            model_alias=self._base,
            model_path=self._model.name,
            modalities=Modalities(vision=False, audio=False),
            chat_template=facts.chat_template or "",
            bos_token=facts.bos_token,
            eos_token=facts.eos_token,
            build_info=f"llamafu {__version__}",
            is_sleeping=False,
            endpoint_slots=False,
            endpoint_props=False,
            endpoint_metrics=True,
        )

    async def _answer(self, request: AuthedRequest[Any], prompts: Sequence[Tokens]) -> ASGIApp:
        body: LlamaBody = request.body
        numbers = {name: number for number, name in self._catalog.numbered()}
        writer = LlamaWriter(body, body.model or self._base, self._engine.model_facts.context_length, numbers)

        def start(tokens_of: Tokens) -> Callable[[dict[str, Any]], Request]:
            def make(options: dict[str, Any]) -> Request:
                tokens = tokens_of()
                made = Request(prompt=tokens, report_tokens=body.stream, stopping=self._limits(body), **options)
                fits = len(tokens) < self._engine.model_facts.context_length  # a longer one is refused in a moment
                writer.prompts.append((made, self._engine.detokenize(tokens, special=True) if fits else ""))
                return made

            return make

        makers = [start(tokens_of) for tokens_of in prompts]
        return await self._generation.answer(request.http, body, makers, writer, WITHOUT_DONE)

    def _limits(self, body: LlamaBody) -> LineLimits | None:
        """Return what ends an answer by its lines, each answer's own, if anything is to."""
        if not body.limits_lines:
            return None
        return LineLimits(indent=body.n_indent, seconds=body.t_max_predict_ms / 1000, token_bytes=self._engine.token_bytes)
