"""LiteLLM's `responses`: an answer, a stream, a named tool."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it fetches one when it is imported

import litellm

# Fewer than 16 tokens are OpenAI's least, which it would ask for instead.
AT = {"api_base": f"{os.environ['LLAMAFU_URL']}/v1", "api_key": os.environ["LLAMAFU_API_KEY"], "temperature": 0}
SCHEMA = {"type": "object", "properties": {"q": {"enum": ["a", "b"]}}, "required": ["q"], "additionalProperties": False}
LOOK = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}

told = litellm.responses(model="openai/a", input="hello", max_output_tokens=16, **AT)
events = list(litellm.responses(model="openai/a", input="hello", max_output_tokens=16, stream=True, **AT))
called = litellm.responses(
    model="openai/tiny",
    input="hello",
    tools=[LOOK],
    tool_choice={"type": "function", "name": "look"},
    parallel_tool_calls=False,
    **AT,
)
print(
    json.dumps(
        {
            "text": told.output[0].content[0].text,
            "status": told.status,
            "streamed": "".join(event.delta for event in events if event.type == "response.output_text.delta"),
            "call": [called.output[0].name, json.loads(called.output[0].arguments)],
        }
    )
)
