"""The OpenAI Agents SDK: agents with a tool over both of its models, streamed too, and one with a structured answer."""

import asyncio
import json
import os
from typing import Literal

import agents
import openai
import pydantic


class Answer(pydantic.BaseModel):
    """What a structured answer has to be."""

    x: Literal[1, 2]
    sure: bool


client = openai.AsyncOpenAI(base_url=f"{os.environ['LLAMAFU_URL']}/v1", api_key=os.environ["LLAMAFU_API_KEY"], max_retries=0)
agents.set_default_openai_client(client, use_for_tracing=False)
agents.set_tracing_disabled(True)
called = []


@agents.function_tool(is_enabled=lambda context, agent: not called)  # or a tiny model would call it again and again
def weather(city: Literal["Paris", "Rome"]) -> str:
    """Tell the weather in a city."""
    called.append(city)
    return f"sun in {city}"


def agent_with(model, choice="required", **more):
    """Return an agent that has to call the tool; what it answers to the output has an end, since a schema holds it."""
    settings = agents.ModelSettings(tool_choice=choice, parallel_tool_calls=False, temperature=0, **more)
    return agents.Agent(
        "Ann", instructions="Be kind.", model=model, tools=[weather], output_type=Answer, model_settings=settings
    )


async def run(agent):
    """Return what a run brings."""
    called.clear()
    result = await agents.Runner.run(agent, "How is the weather?", max_turns=4)
    usage = result.context_wrapper.usage
    return {
        "called": len(called),
        "items": [item.type for item in result.new_items],
        "outputs": [item.output for item in result.new_items if item.type == "tool_call_output_item"],
        "answered": isinstance(result.final_output, Answer),
        "requests": usage.requests,
        "counted": usage.total_tokens == usage.input_tokens + usage.output_tokens > 0,
    }


async def run_streamed(agent):
    """Return the kinds of events of a streamed run."""
    called.clear()
    result = agents.Runner.run_streamed(agent, "How is the weather?", max_turns=4)
    kinds = [event.data.type async for event in result.stream_events() if event.type == "raw_response_event"]
    return {"called": len(called), "kinds": sorted(set(kinds)), "items": [item.type for item in result.new_items]}


async def structured(model):
    """Return whether an agent's answer is of its type."""
    settings = agents.ModelSettings(temperature=0)
    agent = agents.Agent("Ann", model=model, output_type=Answer, model_settings=settings)
    return isinstance((await agents.Runner.run(agent, "hello")).final_output, Answer)


async def main():
    """Run all of it."""
    chats = agents.OpenAIChatCompletionsModel("a", client)
    return {
        "responses": await run(agent_with("a")),
        "named": await run(agent_with("tiny", "weather", extra_body={"lora": {"b": 0.5}})),
        "chats": await run(agent_with(chats)),
        "streamed responses": await run_streamed(agent_with("a")),
        "streamed chats": await run_streamed(agent_with(chats)),
        "structured": [await structured("a"), await structured(chats)],
    }


print(json.dumps(asyncio.run(main())))
