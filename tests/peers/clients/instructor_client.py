"""instructor: a nested model in its modes."""

import instructor
from common import KEY, TASK, URL, Voyage, report
from openai import OpenAI

client = OpenAI(base_url=URL, api_key=KEY, max_retries=0)
OPTIONS = {"model": "smol", "temperature": 0, "max_tokens": 200}


def asked(mode, **options):
    made = instructor.from_openai(client, mode=mode)
    messages = [{"role": "user", "content": TASK}]
    return made.chat.completions.create(response_model=Voyage, messages=messages, max_retries=0, **OPTIONS, **options)


with_schema = {"type": "json_object", "schema": Voyage.model_json_schema()}  # instructor asks for any object, and tells which
report(
    structured={
        "TOOLS": asked(instructor.Mode.TOOLS).model_dump(),
        "JSON_SCHEMA": asked(instructor.Mode.JSON_SCHEMA).model_dump(),
        "JSON": asked(instructor.Mode.JSON, extra_body={"response_format": with_schema}).model_dump(),
    },
)
