"""What users of the anthropic package call: answers, streams, tools, counts, structured answers, errors, asyncio."""

import asyncio
import json
import os

import anthropic
import pydantic

HI = [{"role": "user", "content": "hello"}]
GREEDY = {"max_tokens": 8, "extra_body": {"temperature": 0}}
TOOL = {
    "name": "look",
    "description": "Looks up.",
    "input_schema": {
        "type": "object",
        "properties": {"q": {"type": "string", "enum": ["a", "b"]}},
        "required": ["q"],
        "additionalProperties": False,
    },
}


class Verdict(pydantic.BaseModel):
    """What a structured answer has to be."""

    sure: bool


def lora(scale):
    """Return options that name an adapter beside the base model."""
    return {"model": "tiny", **GREEDY, "extra_body": {"temperature": 0, "lora": {"a": scale}}}


def answers(client):
    """Whole answers, by the base and by adapters in either way."""
    found = {}
    for name, options in {"base": {"model": "tiny", **GREEDY}, "a": {"model": "a", **GREEDY}, "half": lora(0.5)}.items():
        message = client.messages.create(messages=HI, system=[{"type": "text", "text": "s"}], **options)
        (block,) = message.content
        found[name] = [message.model, block.text, message.stop_reason, message.usage.input_tokens, message.usage.output_tokens]
        found[name].append({one["name"]: one["scale"] for one in message.lora})
    return found


def streams(client):
    """A stream by the package's helper, and its events as they come."""
    with client.messages.stream(messages=HI, model="a", **GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    kinds = [event.type for event in client.messages.create(messages=HI, model="a", stream=True, **GREEDY)]
    return {
        "text": text,
        "final": final.content[0].text,
        "reason": final.stop_reason,
        "output": final.usage.output_tokens,
        "input": final.usage.input_tokens + final.usage.cache_read_input_tokens,
        "kinds": list(dict.fromkeys(kinds)),
    }


def tools(client):
    """A call that runs, its result sent back, and the answer to it; the call in a stream too."""
    options = {"model": "tiny", "max_tokens": 200, "tools": [TOOL], "extra_body": {"temperature": 0}}
    forced = {**options, "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True}}
    message = client.messages.create(messages=HI, **forced)
    (call,) = message.content
    gave = {"a": "first", "b": "second"}[call.input["q"]]
    history = [
        *HI,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": gave}]},
    ]
    after = client.messages.create(messages=history, **{**options, "max_tokens": 8}, tool_choice={"type": "none"})
    with client.messages.stream(messages=HI, **forced) as stream:
        events = [event.type for event in stream]
        (streamed,) = stream.get_final_message().content
    return {
        "reason": message.stop_reason,
        "name": call.name,
        "input": call.input,
        "streamed": streamed.input,
        "has_parts": events.count("input_json") > 1,
        "after": [block.type for block in after.content],
    }


def errors(url):
    """The class and the type of every error."""
    found = {}

    def ask(name, key=os.environ["LLAMAFU_API_KEY"], **body):
        options = {"messages": HI, "model": "tiny", "max_tokens": 4, **body}
        try:
            with anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as client:
                client.messages.create(**options)
        except anthropic.APIStatusError as error:
            found[name] = [type(error).__name__, error.status_code, error.body["error"]["type"], error.body["error"]["message"]]

    ask("key", key="no-key")
    ask("model", model="gone")
    ask("field", extra_body={"top_p": 2})
    ask("long", messages=[{"role": "user", "content": "hello " * 5000}])
    ask("image", messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}])
    return found


async def at_once(url, key):
    """Several answers at once, streamed."""
    async with anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as client:

        async def one(scale):
            async with client.messages.stream(messages=HI, **lora(scale)) as stream:
                return "".join([text async for text in stream.text_stream])

        return await asyncio.gather(*map(one, (0, 0.5, 1)))


def main():
    """Call everything, and print what came as JSON."""
    url, key = os.environ["LLAMAFU_URL"], os.environ["LLAMAFU_API_KEY"]
    with anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as client:
        parsed = client.messages.parse(messages=HI, model="tiny", max_tokens=60, output_format=Verdict)
        stopped = client.messages.create(messages=HI, model="tiny", **GREEDY, stop_sequences=[os.environ["STOP"]])
        bearer = anthropic.Anthropic(base_url=url, auth_token=key, max_retries=0)
        found = {
            "answers": answers(client),
            "streams": streams(client),
            "tools": tools(client),
            "count": client.messages.count_tokens(messages=HI, model="tiny").input_tokens,
            "count_tools": client.messages.count_tokens(messages=HI, model="tiny", tools=[TOOL]).input_tokens,
            "parsed": isinstance(parsed.parsed_output, Verdict),
            "stopped": [stopped.stop_reason, stopped.stop_sequence],
            "bearer": bearer.messages.create(messages=HI, model="a", **GREEDY).content[0].text,
            "beta": client.beta.messages.create(messages=HI, model="a", betas=["x-2025-01-01"], **GREEDY).content[0].text,
            "errors": errors(url),
            "at_once": asyncio.run(at_once(url, key)),
        }
    print(json.dumps(found))


main()
