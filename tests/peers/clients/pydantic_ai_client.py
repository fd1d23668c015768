"""pydantic-ai: an agent with a tool, and a nested model as its output by a tool and by the schema of the answer."""

import asyncio

from common import CAPITAL, KEY, QUESTION, TASK, URL, Voyage, ran, report, weather
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=URL, api_key=KEY)


def agent(name, **options):
    return Agent(OpenAIChatModel(name, provider=provider), model_settings={"temperature": 0, "max_tokens": 200}, **options)


async def streamed():
    async with agent("pirate").run_stream(CAPITAL) as result:
        return "".join([part async for part in result.stream_text(delta=True)])


report(
    said=agent("pirate").run_sync(CAPITAL).output,
    streamed=asyncio.run(streamed()),
    answer=agent("caller", tools=[weather]).run_sync(QUESTION).output,
    ran=ran,
    structured={
        "tools": agent("smol", output_type=Voyage).run_sync(TASK).output.model_dump(),
        "json_schema": agent("smol", output_type=NativeOutput(Voyage)).run_sync(TASK).output.model_dump(),
    },
)
