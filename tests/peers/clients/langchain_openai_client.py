"""LangChain's package for OpenAI's protocol: chats, streams, an agent, structured output, embeddings."""

import openai
from common import CAPITAL, KEY, QUESTION, TASK, URL, Voyage, ran, report, weather
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


def model(name, **options):
    return ChatOpenAI(base_url=URL, api_key=KEY, model=name, temperature=0, timeout=100, max_retries=0, **options)


def refused():
    try:
        model("gone").invoke(CAPITAL)
    except openai.NotFoundError as error:
        return error.code


def embedded(**options):
    made = OpenAIEmbeddings(base_url=URL, api_key=KEY, model="smol", max_retries=0, **options)
    try:
        return [len(vector) for vector in made.embed_documents(["a ship on the sea", "tax law"])]
    except openai.BadRequestError as error:
        return str(error)


said = {name: model(name, max_tokens=12).invoke(CAPITAL) for name in ("smol", "pirate")}
blend = model("smol", max_tokens=12, extra_body={"lora": {"pirate": 1.0, "caller": 0.25}}).invoke(CAPITAL)
chunks = list(model("pirate", max_tokens=12, stream_usage=True).stream(CAPITAL))
messages = create_agent(model("caller"), tools=[weather]).invoke({"messages": [("user", QUESTION)]})["messages"]
streamed = [
    call for chunk in model("caller").bind_tools([weather]).stream(QUESTION) for call in getattr(chunk, "tool_call_chunks", ())
]
structured = {
    method: model("smol", max_tokens=200).with_structured_output(Voyage, method=method).invoke(TASK).model_dump()
    for method in ("json_schema", "function_calling")
}
some_object = model("smol", max_tokens=200).with_structured_output(None, method="json_mode").invoke(f"{TASK} Answer in JSON.")
report(
    said={name: answer.text for name, answer in said.items()},
    usage=said["smol"].usage_metadata["output_tokens"],
    blend=blend.text,
    streamed="".join(chunk.text for chunk in chunks),
    streamed_usage=sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata),
    ran=ran,
    kinds=[message.type for message in messages],
    answer=messages[-1].text,
    parts="".join(call["args"] or "" for call in streamed),
    structured=structured,
    json_mode=type(some_object).__name__,
    refused=refused(),
    embedded=embedded(check_embedding_ctx_length=False),
    embedded_tokens=embedded(),
)
