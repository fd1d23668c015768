"""LiteLLM: chats, streams, tools whole and streamed, structured output, embeddings."""

import litellm
from common import CAPITAL, KEY, QUESTION, TASK, TOOL, URL, Voyage, report

litellm.telemetry = False


def ask(name, text, **options):
    messages = [{"role": "user", "content": text}]
    return litellm.completion(
        model=f"openai/{name}", api_base=URL, api_key=KEY, messages=messages, temperature=0, num_retries=0, **options
    )


def refused():
    try:
        ask("gone", CAPITAL)
    except litellm.NotFoundError as error:
        return error.status_code


called = ask("caller", QUESTION, tools=[TOOL], max_tokens=100).choices[0]
parts = [
    chunk.choices[0].delta for chunk in ask("caller", QUESTION, tools=[TOOL], max_tokens=100, stream=True) if chunk.choices
]
calls = [call.function for part in parts for call in part.tool_calls or ()]
pieces = [chunk.choices[0].delta.content or "" for chunk in ask("pirate", CAPITAL, max_tokens=12, stream=True)]
vectors = litellm.embedding(model="openai/smol", api_base=URL, api_key=KEY, input=["a ship on the sea", "tax law"])
report(
    said={name: ask(name, CAPITAL, max_tokens=12).choices[0].message.content for name in ("smol", "pirate")},
    streamed="".join(pieces),
    call=[called.finish_reason, called.message.tool_calls[0].function.name, called.message.tool_calls[0].function.arguments],
    parts=[calls[0].name, "".join(call.arguments or "" for call in calls)],
    structured=Voyage.model_validate_json(
        ask("smol", TASK, response_format=Voyage, max_tokens=200).choices[0].message.content
    ).model_dump(),
    refused=refused(),
    embedded=[len(one["embedding"]) for one in vectors.data],
)
