"""simonw's `llm` with Llamafu's plugin: its command line, then its Python interface, over a model that was added."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import llm
from common import CAPITAL, QUESTION, TASK, Voyage, ran, report, weather

LIST = Path(os.environ["LLM_USER_PATH"]) / "llamafu.json"
FOLDER, MODEL = os.environ["LLAMAFU_ADAPTERS"], os.environ["LLAMAFU_MODEL"]


def run(*arguments):
    done = subprocess.run([sys.executable, "-m", "llm", *arguments], capture_output=True, encoding="utf-8", check=False)
    return [done.returncode, (done.stdout if done.returncode == 0 else done.stderr).strip()]


added = run("llamafu", "add", "smol", MODEL, "--adapters", FOLDER, "--n-ctx", "8192")
commands = {
    "listed": run("llamafu", "list"),
    "models": run("models", "list", "--query", "smol"),
    "prompt": run("-m", "smol/pirate", "-o", "temperature", "0", "-o", "max_tokens", "12", CAPITAL),
    "blend": run("-m", "smol", "-o", "temperature", "0", "-o", "max_tokens", "12", "-o", "lora", '{"pirate": 1.0}', CAPITAL),
    "schema": run("-m", "smol", "-o", "temperature", "0", "--schema", "name, masts int", "Name a ship."),
    "no option": run("-m", "smol", "-o", "temprature", "0", CAPITAL),
    "bad option": run("-m", "smol", "-o", "temperature", "-1", CAPITAL),
    "both": run("-m", "smol/pirate", "-o", "lora", "{}", CAPITAL),
    "no model": run("llamafu", "add", "other", f"{FOLDER}/pirate.gguf"),
    "no name": run("llamafu", "add", "a b", MODEL),
    "remove": run("llamafu", "remove", "gone"),
}

pirate = llm.get_model("smol/pirate")
streamed = list(pirate.prompt(CAPITAL, temperature=0, max_tokens=12))
answer = pirate.prompt(CAPITAL, temperature=0, max_tokens=12)
chain = llm.get_model("smol/caller").conversation(tools=[weather]).chain(QUESTION, options={"temperature": 0})
conversation = llm.get_model("smol").conversation()
conversation.prompt("Call me Ishmael.", temperature=0, max_tokens=16).text()
conversation.prompt("Who am I?", temperature=0, max_tokens=16).text()


async def awaited():
    return await llm.get_async_model("smol/pirate").prompt(CAPITAL, temperature=0, max_tokens=12).text()


def damaged():
    """With a list that cannot be read, the models of others go on working."""
    LIST.write_text("[1]", encoding="utf-8")
    return [run("llamafu", "list"), run("models", "list")]


report(
    added=added,
    commands=commands,
    said=answer.text(),
    pieces=len(streamed),
    streamed="".join(streamed),
    usage=[answer.usage().input, answer.usage().output],
    lora=[one["name"] for one in answer.json()["lora"]],
    chain=chain.text(),
    ran=ran,
    schema=json.loads(llm.get_model("smol").prompt(TASK, schema=Voyage, temperature=0).text()),
    roles=[message.role for message in conversation.responses[-1].prompt.messages],
    remembered=conversation.responses[-1].input_tokens > conversation.responses[0].input_tokens,
    awaited=asyncio.run(awaited()),
    embedded=[len(llm.get_embedding_model(name).embed("tax law")) for name in ("smol", "smol/pirate")],
    removed=run("llamafu", "remove", "smol"),
    left=run("llamafu", "list"),
    damaged=damaged(),
)
