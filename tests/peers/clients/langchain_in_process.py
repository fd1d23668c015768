"""LangChain over an engine of this process: `llamafu.integrations.langchain` with LangChain's own agent and parsers."""

import asyncio
import os
from typing import TypedDict

from common import CAPITAL, QUESTION, TASK, Voyage, ran, report, weather
from langchain.agents import create_agent
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    HumanMessageChunk,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
)

from llamafu import Engine, Llamafu
from llamafu.integrations.langchain import ChatLlamafu, LlamafuEmbeddings
from llamafu.integrations.langchain.messages import openai_messages


class Ship(TypedDict):
    """A ship."""

    name: str
    masts: int


def failing(call):
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the test reads which it is
        return [type(error).__name__, str(error)]


async def awaited(chat):
    chunks = [chunk async for chunk in chat.astream(CAPITAL)]
    answers = await asyncio.gather(*(chat.ainvoke(CAPITAL, model=name) for name in ("pirate", "smol")))
    return {"stream": "".join(chunk.text for chunk in chunks), "answers": [answer.text for answer in answers]}


async def left(chat):
    """Leave a stream early, and cancel an answer; what is asked next is answered."""
    async for _ in chat.astream(CAPITAL, max_tokens=-1, ignore_eos=True):
        break
    task = asyncio.create_task(chat.ainvoke(CAPITAL, max_tokens=-1, ignore_eos=True))
    await asyncio.sleep(0.5)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return (await chat.ainvoke(CAPITAL)).text


def of(engine):
    """What is the same over an `Engine` and a `Llamafu`."""
    chat = ChatLlamafu(engine=engine, temperature=0, max_tokens=12)
    pirate = ChatLlamafu(engine=engine, model="pirate", temperature=0, max_tokens=12)
    chunks = list(pirate.stream(CAPITAL))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    blend = chat.invoke(CAPITAL, lora={"pirate": 1.0, "caller": 0.25})
    return {
        "said": {"smol": chat.invoke(CAPITAL).text, "pirate": pirate.invoke(CAPITAL).text},
        "streamed": whole.text,
        "streamed_usage": whole.usage_metadata["output_tokens"],
        "streamed_end": whole.response_metadata["finish_reason"],
        "pieces": len(chunks),
        "blend": blend.response_metadata["lora"],
        "stopped": chat.invoke(CAPITAL, stop=["you"]).text,
        "awaited": asyncio.run(awaited(pirate)),
        "left": asyncio.run(left(chat)),
    }


folder = os.environ["LLAMAFU_ADAPTERS"]
with Llamafu(os.environ["LLAMAFU_MODEL"], n_ctx=2048) as llm:
    for name in ("pirate", "caller"):
        llm.load_lora_adapter(f"{folder}/{name}.gguf")
    of_llamafu = of(llm)
with Engine(os.environ["LLAMAFU_MODEL"], n_ctx=8192, adapters_dir=folder) as engine:
    chat = ChatLlamafu(engine=engine, temperature=0)
    caller = ChatLlamafu(engine=engine, model="caller", temperature=0)
    messages = create_agent(caller, tools=[weather]).invoke({"messages": [("user", QUESTION)]})["messages"]
    required = chat.bind_tools([weather], tool_choice="any", parallel_tool_calls=False).invoke(QUESTION)
    parts = None
    for chunk in caller.bind_tools([weather]).stream(QUESTION):
        parts = chunk if parts is None else parts + chunk
    thought = AIMessage("Fine.", additional_kwargs={"reasoning_content": "It asks."})
    history = [HumanMessage("Hi"), thought, *messages[:2], ToolMessage("rainy", tool_call_id=messages[1].tool_calls[0]["id"])]
    structured = {
        method: chat.with_structured_output(Voyage, method=method).invoke(TASK).model_dump()
        for method in ("json_schema", "function_calling")
    }
    raw = chat.with_structured_output(Voyage, include_raw=True).invoke(TASK)
    report(
        of_engine=of(engine),
        of_llamafu=of_llamafu,
        kinds=[message.type for message in messages],
        ran=ran,
        answer=messages[-1].text,
        required=required.tool_calls,
        parts=[[call["name"], call["args"]] for call in parts.tool_calls],
        history=caller.bind_tools([weather]).invoke(history).text,
        chunks=openai_messages(
            [SystemMessageChunk("Be kind."), HumanMessageChunk("Hi"), parts, ToolMessageChunk("rainy", tool_call_id="1")]
        ),
        structured=structured,
        typed=chat.with_structured_output(Ship).invoke("Name a ship."),
        json_mode=type(chat.with_structured_output(method="json_mode").invoke(f"{TASK} Answer in JSON.")).__name__,
        raw=[raw["raw"].type, type(raw["parsed"]).__name__, raw["parsing_error"]],
        counted=chat.get_num_tokens("tax law"),
        embedded=[len(LlamafuEmbeddings(engine, model=name).embed_query("tax law")) for name in (None, "pirate")],
        documents=[len(vector) for vector in LlamafuEmbeddings(engine).embed_documents(["a ship on the sea", "tax law"])],
        errors=[
            failing(lambda: ChatLlamafu(engine=engine, temprature=0)),
            failing(lambda: ChatLlamafu(engine=engine, temperature=-1)),
            failing(lambda: ChatLlamafu(engine=engine, model="pirate", lora={})),
            failing(lambda: ChatLlamafu(engine="model.gguf")),
            failing(lambda: ChatLlamafu(engine=engine, model="gone").invoke("Hi")),
            failing(lambda: chat.invoke("Hi", max_token=3)),
            failing(lambda: chat.with_structured_output(Voyage, method="xml")),
            failing(lambda: chat.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "data:"}}])])),
        ],
    )
