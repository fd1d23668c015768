"""The openai package's `responses`: answers, streams, structured output, tools, errors. Says what of each a test looks at."""

import json
import os
from typing import Literal

import openai
import pydantic


class Answer(pydantic.BaseModel):
    """What a structured answer has to be."""

    x: Literal[1, 2]
    sure: bool


class Look(pydantic.BaseModel):
    """Look something up."""

    q: Literal["a", "b"]


client = openai.OpenAI(base_url=f"{os.environ['LLAMAFU_URL']}/v1", api_key=os.environ["LLAMAFU_API_KEY"], max_retries=0)
GREEDY = {"temperature": 0, "max_output_tokens": 8}
LOOK = {"tools": [openai.pydantic_function_tool(Look)], "temperature": 0, "max_output_tokens": 200}
NAMED = {"type": "function", "name": "Look"}


def plain():
    """Ask with adapters by model and by extra_body."""
    by_model = client.responses.create(model="a", input="hello", instructions="be kind", **GREEDY)
    by_body = client.responses.create(
        model="tiny", input=[{"role": "user", "content": "hello"}], extra_body={"lora": {"b": 0.5}}, **GREEDY
    )
    return {
        "texts": [by_model.output_text, by_body.output_text],
        "status": [by_model.status, by_model.incomplete_details.reason],
        "usage": by_model.usage.model_dump(),
        "kinds": [type(item).__name__ for item in by_model.output],
    }


def streamed():
    """Add up a stream's deltas."""
    events = list(client.responses.create(model="a", input="hello", stream=True, **GREEDY))
    return {
        "text": "".join(event.delta for event in events if event.type == "response.output_text.delta"),
        "ends": [events[0].type, events[-1].type],
        "unknown": [event.type for event in events if type(event).__name__ == "BaseModel"],
        "numbers": [event.sequence_number for event in events] == [*range(len(events))],
    }


def structured():
    """Parse answers, whole and streamed."""
    options = {"model": "tiny", "input": "hello", "text_format": Answer, "temperature": 0, "max_output_tokens": 60}
    parsed = client.responses.parse(**options).output_parsed
    with client.responses.stream(**options) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    return {"same": parsed == final.output_parsed, "kind": type(parsed).__name__, "kinds": sorted(kinds)}


def tools():
    """Call a named function, whole and streamed, and send the call and its output back."""
    told = client.responses.parse(model="tiny", input="hello", tool_choice=NAMED, **LOOK)
    [call] = told.output
    with client.responses.stream(model="tiny", input="hello", tool_choice=NAMED, **LOOK) as stream:
        kinds = {event.type for event in stream}
        [again] = stream.get_final_response().output
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "found"}
    history = [{"role": "user", "content": "hello"}, call.model_dump(exclude={"parsed_arguments"}), output]
    after = client.responses.parse(model="tiny", input=history, tool_choice="none", **{**LOOK, "max_output_tokens": 8})
    return {
        "kind": type(call.parsed_arguments).__name__,
        "same": call.parsed_arguments == again.parsed_arguments,
        "kinds": sorted(kinds),
        "after": [item.type for item in after.output],
    }


def probabilities():
    """Ask for log probabilities."""
    options = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, **GREEDY}
    told = client.responses.create(model="tiny", input="hello", **options)
    return [[one.token, one.logprob, len(one.top_logprobs)] for one in told.output[0].content[0].logprobs]


def refused(**options):
    """Return the class of an error, and what it names."""
    try:
        client.responses.create(**{"model": "tiny", "input": "hello", **options})
    except openai.APIStatusError as error:
        return [type(error).__name__, error.code, error.param]
    return []


print(
    json.dumps(
        {
            "plain": plain(),
            "streamed": streamed(),
            "structured": structured(),
            "tools": tools(),
            "probabilities": probabilities(),
            "refused": [
                refused(model="gone"),
                refused(previous_response_id="resp_1"),
                refused(tools=[{"type": "web_search"}], tool_choice={"type": "web_search"}),
                refused(truncation="auto"),
            ],
        }
    )
)
