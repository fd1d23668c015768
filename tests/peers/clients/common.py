"""What the programs of this folder share: the server, a nested model to be filled in, and a tool."""

import json
import os
from typing import Literal

from pydantic import BaseModel, Field

URL = f"{os.environ.get('LLAMAFU_URL', '')}/v1"
KEY = os.environ.get("LLAMAFU_API_KEY", "")
CAPITAL = "What is the capital of Germany?"
QUESTION = "How is the weather in Tokyo?"
TASK = "Describe a voyage of the ship Anna from Tokyo."
ran = []
"""The cities that the tool was called with."""


class Harbour(BaseModel):
    """A harbour."""

    city: Literal["Berlin", "Tokyo"]
    depth: int = Field(ge=0, le=99)


class Voyage(BaseModel):
    """A voyage of a ship."""

    ship: Literal["Anna", "Bella"]
    start: Harbour
    stops: list[Harbour] = Field(min_length=1, max_length=2)


def weather(city: str) -> str:
    """The weather in a city"""  # noqa: D400, D415 - what the model is told
    ran.append(city)
    return "sunny, 21 degrees"


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def report(**results):
    """Print what the test reads."""
    print(json.dumps(results))
