"""Request bodies of the routes that manage adapters."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from llamafu.adapters.gguf.container import SUFFIX
from llamafu.server.schemas.adapter_choice import Scales
from llamafu.server.schemas.base import SmallBody
from llamafu.server.schemas.field_types import AdapterName, Flag, Legal, LooseScale
from llamafu.service.loading import LoraLoadInfo, LoraLoadRequest


class LoraLoadEntry(SmallBody):
    """One adapter of the set that is to be active."""

    tolerant: ClassVar[bool] = False
    name: AdapterName
    scaling: LooseScale = 1.0


class LoraLoadBody(SmallBody):
    """`POST /v1/lora/load`: the set that is to be active."""

    tolerant: ClassVar[bool] = False
    loras: Annotated[list[LoraLoadEntry], Legal("a list"), Field(json_schema_extra={"minItems": 1})]
    skip_queue: Flag = False

    def contradictions(self) -> list[str]:
        """Return what no service would take: no adapter at all, or one twice."""
        return list(self.request().problems())

    def request(self) -> LoraLoadRequest:
        """Return it as the service takes it."""
        return LoraLoadRequest(tuple(LoraLoadInfo(each.name, each.scaling) for each in self.loras), self.skip_queue)


class MixBody(SmallBody):
    """`POST /v1/mixes`: adapters with scales, and their name. A mix of that name is replaced only with `overwrite`."""

    tolerant: ClassVar[bool] = False
    name: AdapterName
    lora: Scales
    overwrite: Flag = False


class VllmLoadRequest(SmallBody):
    """`POST /v1/load_lora_adapter`, vLLM's: the path is a name inside the adapters folder, with or without that."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"lora_int_id", "base_model_name", "load_inplace"})

    lora_name: AdapterName
    lora_path: AdapterName

    def contradictions(self) -> list[str]:
        """Return that the path is not the name's."""
        name, path = self.lora_name, self.lora_path
        if name in {path.removesuffix(SUFFIX), PurePath(path).name.removesuffix(SUFFIX)}:
            return []
        return [f"lora_path {path!r} is not {name!r} or {name + SUFFIX!r}: adapters go by their name in the folder"]


class VllmUnloadRequest(SmallBody):
    """`POST /v1/unload_lora_adapter`, vLLM's."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"lora_int_id"})

    lora_name: AdapterName


class UploadForm(BaseModel):
    """`POST /v1/lora/upload`: a multipart form, which the route reads itself as it arrives."""

    model_config = ConfigDict(extra="forbid")

    file: Annotated[Any, WithJsonSchema({"type": "string", "format": "binary", "description": "a GGUF adapter"})]
    name: str = ""
