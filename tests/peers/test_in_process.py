"""Llamafu's integrations with the packages that they are for, over an engine of the packages' own process."""

import json

import pytest
from helpers.package_environment import our_package, requirements_of, run_client
from helpers.talking_model import ANSWER, BASE, PIRATE, WIDTH, write_talking_model

LONG = 600
"""Seconds for a program: a package's first import may take a minute where nothing is compiled yet."""


@pytest.fixture
def variables(real, tmp_path):
    """What a program of its own needs to find Llamafu, the model and the adapters."""
    installed = tmp_path / "installed"
    installed.mkdir()
    model = write_talking_model(tmp_path)
    files = {"LLAMAFU_MODEL": str(model), "LLAMAFU_ADAPTERS": str(tmp_path / "adapters")}
    return {**our_package(installed, real), **files}


def assert_answers(told):
    """What an engine and a `Llamafu` have to do alike."""
    assert told["said"] == {"smol": BASE, "pirate": PIRATE}
    assert told["streamed"] == told["awaited"]["stream"] == PIRATE
    assert told["awaited"]["answers"] == [PIRATE, BASE]
    assert (told["pieces"], told["streamed_usage"], told["streamed_end"]) == (4, 3, "stop")
    assert told["blend"] == {"pirate": 1.0, "caller": 0.25}
    assert told["stopped"] == "I hear "
    assert told["left"] == BASE


def test_langchain(variables):
    told = run_client(
        "langchain_in_process.py", "", *requirements_of("chat"), "langchain", "langchain-core>=1", seconds=LONG, **variables
    )
    assert_answers(told["of_engine"])
    assert_answers(told["of_llamafu"])
    assert told["kinds"] == ["human", "ai", "tool", "ai"]
    assert told["ran"] == ["Tokyo"]
    assert told["answer"] == told["history"] == ANSWER
    assert [call["name"] for call in told["required"]] == ["weather"]
    assert told["parts"] == [["weather", {"city": "Tokyo"}]]
    assert [message["role"] for message in told["chunks"]] == ["system", "user", "assistant", "tool"]
    assert told["chunks"][2]["tool_calls"][0]["function"]["name"] == "weather"
    assert [voyage["ship"] for voyage in told["structured"].values()] == ["Anna", "Anna"]
    assert set(told["typed"]) == {"name", "masts"}
    assert told["json_mode"] == "dict"
    assert told["raw"] == ["ai", "Voyage", None]
    assert told["counted"] == len("tax law")
    assert told["embedded"] == [WIDTH, WIDTH]
    assert told["documents"] == [WIDTH, WIDTH]
    kinds, messages = zip(*told["errors"], strict=True)
    assert kinds == (
        *("TypeError", "ValidationError", "ValidationError", "TypeError"),
        *("LoraNotFoundError", "TypeError", "ValueError", "TypeError"),
    )
    for message, part in zip(
        messages,
        (
            "unknown option 'temprature'; did you mean 'temperature'?",
            "temperature=-1",
            "give one of them",
            "give a llamafu.Engine or a llamafu.Llamafu",
            "'gone'",
            "did you mean 'max_tokens'?",
            "method='xml' is none of 'json_schema', 'function_calling', 'json_mode'",
            "messages[0].content[0].type is 'image_url'",
        ),
        strict=True,
    ):
        assert part in message


def test_llm(variables, tmp_path):
    told = run_client(
        "llm_plugin_commands.py", "", *requirements_of("chat"), "llm>=0.32", seconds=LONG,
        LLM_USER_PATH=str(tmp_path / "llm"), **variables,
    )  # fmt: skip
    commands = told["commands"]
    assert told["added"] == [0, "smol\nsmol/caller\nsmol/pirate"]
    assert commands["listed"][1].split("\t")[0] == "smol"
    assert sum("smol" in line for line in commands["models"][1].splitlines()) == 3
    assert commands["prompt"] == commands["blend"] == [0, PIRATE]
    assert set(json.loads(commands["schema"][1])) == {"name", "masts"}
    for name, part in (
        ("no option", "temprature"),
        ("bad option", "greater than or equal to 0"),
        ("both", "both say which adapters act; give one of them"),
        ("no model", "is an adapter; give the model that it is for"),
        ("no name", "'a b' is no name for a model"),
        ("remove", "no such model: 'gone' (models: smol)"),
    ):
        assert commands[name][0] == 1, name
        assert part in commands[name][1], name
    assert told["streamed"] == told["awaited"] == told["said"] == PIRATE
    assert (told["pieces"], told["usage"][1]) == (3, 3)
    assert told["lora"] == ["pirate"]
    assert told["ran"] == ["Tokyo"]
    assert told["chain"] == ANSWER
    assert told["schema"]["ship"] == "Anna"
    assert told["roles"] == ["user", "assistant", "user"]
    assert told["remembered"]
    assert told["embedded"] == [WIDTH, WIDTH]
    assert told["removed"][0] == 0
    assert told["left"] == [0, ""]
    (status, message), (others_status, others) = told["damaged"]
    assert status == 1
    assert "llamafu.json is no list of models" in message
    assert others_status == 0
    assert "OpenAI" in others
