"""Write the training data of the adapter that calls tools: prompts as Llamafu makes them, and what is to follow.

    python scripts/make_tool_data.py --base MODEL.gguf > caller.jsonl
    python scripts/train_adapter.py --base MODEL.gguf --data caller.jsonl --out caller --targets q_proj,v_proj --steps 60

A third of the questions wants a tool, a third has its result already, and a third needs none. The last lines are of cities
and people that no other line has: what is measured on them is whether a name is copied.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from llamafu import Engine

CITIES = "Rome Oslo Cairo Lima Paris Quito Delhi Seoul Dublin Hanoi Accra Kyoto Boston Milan Riga Bern Sofia Prague".split()
PEOPLE = "Anna Boris Clara David Emma Felix Greta Hugo Ines Jakob Karla Lukas Maria Nils Olga Paul".split()
TEXT = {"type": "string"}
NUMBER = {"type": "integer"}


def tool(name: str, about: str, **properties: Any) -> dict[str, Any]:
    """Return a tool as OpenAI's clients write it."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


def weather(dice: random.Random) -> tuple[Any, ...]:
    """Return a tool, a question for it, its arguments, a result and the answer to that."""
    city, sky, degrees = dice.choice(CITIES), dice.choice(["sunny", "rainy", "cloudy", "windy"]), dice.randint(-5, 35)
    asked = dice.choice(["How is the weather in {}?", "What is the weather like in {}?", "Is it raining in {}?"]).format(city)
    made = tool(dice.choice(["weather", "get_weather"]), "The weather in a city", city=TEXT)
    return made, asked, {"city": city}, f"{sky}, {degrees} degrees", f"It is {sky} in {city}, with {degrees} degrees."


def clock(dice: random.Random) -> tuple[Any, ...]:
    """Return the same for the time of day."""
    city, time = dice.choice(CITIES), f"{dice.randint(0, 23):02}:{dice.randint(0, 59):02}"
    asked = dice.choice(["What time is it in {}?", "Tell me the time in {}."]).format(city)
    return tool("get_time", "The time of day in a city", city=TEXT), asked, {"city": city}, time, f"It is {time} in {city}."


def mail(dice: random.Random) -> tuple[Any, ...]:
    """Return the same for a letter."""
    name, word = dice.choice(PEOPLE), dice.choice(["hello", "good night", "thank you", "happy birthday"])
    made = tool("send_mail", "Send a message to a person", to=TEXT, text=TEXT)
    return made, f"Write {word} to {name}.", {"to": name, "text": word}, "sent", f"I have sent {word} to {name}."


def total(dice: random.Random) -> tuple[Any, ...]:
    """Return the same for a sum."""
    a, b = dice.randint(10, 99), dice.randint(10, 99)
    made = tool("add", "Add two numbers", a=NUMBER, b=NUMBER)
    return made, f"What is {a} plus {b}?", {"a": a, "b": b}, str(a + b), f"{a} plus {b} is {a + b}."


PLAIN = (
    ("Hello!", "Hello! How can I help you?"),
    ("Who are you?", "I am an assistant."),
    ("Thank you very much.", "You are welcome."),
    ("What is the opposite of cold?", "The opposite of cold is hot."),
    ("Say yes.", "Yes."),
)
SUBJECTS = (weather, clock, mail, total)


def rows(engine: Engine, dice: random.Random, count: int) -> list[dict[str, str]]:
    """Return training lines: a prompt's text, and the answer."""
    made = []
    for number in range(count):
        subject = SUBJECTS[number % len(SUBJECTS)]
        function, asked, arguments, result, answer = subject(dice)
        others = [other(dice)[0] for other in dice.sample([one for one in SUBJECTS if one is not subject], dice.randint(0, 1))]
        tools = dice.sample([function, *others], 1 + len(others))
        messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
        name = function["function"]["name"]
        text = f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        kind = number // len(SUBJECTS) % 3
        if kind == 1:
            call = {"id": "1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            messages += [{"role": "assistant", "content": None, "tool_calls": [call]}]
            messages += [{"role": "tool", "tool_call_id": "1", "content": result}]
            text = answer
        elif kind > 1:
            asked, text = dice.choice(PLAIN)
            messages = [{"role": "user", "content": asked}]
        made.append({"prompt": engine.prompt_of_chat(messages, {"tools": tools}), "answer": text})
    return made


def main() -> None:
    """Print the lines, those that are held out last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="GGUF model with the chat template")
    parser.add_argument("--lines", type=int, default=120, help="how many, eight of them held out")
    arguments = parser.parse_args()
    dice = random.Random(5)  # noqa: S311 - data, not secrets
    with Engine(arguments.base, n_ctx=512, kernel="none") as engine:
        every = rows(engine, dice, arguments.lines - 8)
        CITIES[:], PEOPLE[:] = ["Tokyo", "Madrid", "Vienna"], ["Tom", "Zoe"]
        every += rows(engine, dice, 8)
    for row in every:
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
