"""Chat templates of public models: rendered as transformers does, and calls that they write are read again."""

import datetime as dt
import json
import re
from types import SimpleNamespace

import pytest
from helpers.public_templates import FOLDER, Told, rows, text_of
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from llamafu.errors import LlamafuError
from llamafu.generation import chat_template, jinja_template
from llamafu.generation.chat_options import ChatOptions
from llamafu.generation.chat_prompt import NoPlaceError
from llamafu.generation.tools.answer_format import AnswerFormat, AnswerParser
from llamafu.generation.tools.family import FAMILIES, family_of
from llamafu.generation.tools.reasoning_marks import reasoning_of
from llamafu.generation.tools.tool import callable_tools

ROWS = rows()
ENDS = {"bos_token": "<s>", "eos_token": "</s>"}
ARGUMENTS = {"city": 'L\'Aquila, "Italia" <b>\u00e9', "days": 2}
PROPERTIES = {"city": {"type": "string", "description": "c"}, "days": {"type": "integer", "description": "d"}}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather & <more>", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}, {"type": "function", "function": {**FUNCTION, "name": "forecast"}}]
SYSTEM = {"role": "system", "content": "Answer <b>briefly</b> & 'well'."}
USER = {"role": "user", "content": "Wie spät ist es? \U0001f551"}
SAID = {"role": "assistant", "content": "Noon."}
AGAIN = {"role": "user", "content": " And {{ now }}?\n"}
THOUGHT = {"reasoning_content": "Hm, what\nnow?"}


def calling(*calls, content=""):
    """Return an assistant's message with calls: each a name and an identifier."""
    functions = [(id_, {"name": name, "arguments": ARGUMENTS}) for name, id_ in calls]
    called = [{"id": id_, "type": "function", "function": function} for id_, function in functions]
    return {"role": "assistant", "content": content, "tool_calls": called}


def given(id_, name="weather"):
    return {"role": "tool", "tool_call_id": id_, "name": name, "content": "sunny today"}


CALL = calling(("weather", "abcdefghi"))
CALLS = calling(("weather", "abcdefghi"), ("forecast", "abcdefghj"))
RESULT = given("abcdefghi")
CHATS = {
    "plain": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, SAID, AGAIN, SAID, USER],
    "developer": [{**SYSTEM, "role": "developer"}, USER],
    "call": [USER, CALL, RESULT],
    "call in the past": [SYSTEM, USER, CALL, RESULT, SAID, AGAIN],
    "call after words": [USER, {**CALL, "content": "Let me see."}, RESULT],
    "calls at once": [USER, CALLS, RESULT, given("abcdefghj", "forecast")],
    "reasoning": [USER, {**SAID, **THOUGHT}, AGAIN],
    "reasoning before a call": [USER, {**CALL, **THOUGHT}, RESULT],
}
DOCUMENTS = [{"title": "Clocks", "text": "A clock & <its> hands"}, {"title": "Suns", "text": "A dial"}]
OWN = {"functions": "[]", "datetime": "today"}  # FireFunction's
VARIABLES = ({}, {"enable_thinking": True}, {"enable_thinking": False}, {"documents": DOCUMENTS, **OWN})


class Fixed(dt.datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        moment = dt.datetime(2026, 7, 5, 13, 5, tzinfo=dt.UTC).astimezone()
        return moment if tz else moment.replace(tzinfo=None)


@pytest.fixture(scope="session")
def tokenizer():
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **ENDS)


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(jinja_template, "dt", SimpleNamespace(datetime=Fixed, UTC=dt.UTC))
    monkeypatch.setattr(chat_template_utils, "datetime", Fixed)


@pytest.fixture
def template(request, name, monkeypatch):
    tree = None if (FOLDER / f"{name}.jinja").exists() else request.getfixturevalue("upstream")
    text = text_of(name, tree)
    if text is None:
        pytest.skip(f"this source tree has no {name}.jinja")
    if ".append(" in text:  # it grows a list, which transformers refuses, and llama.cpp does not
        compiled = chat_template_utils._compile_jinja_template(text)
        monkeypatch.setattr(compiled.environment, "is_safe_attribute", lambda obj, attr, value: True)
    return text


def with_arguments(messages, form):
    """Return a chat whose calls have their arguments in another form."""
    changed = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": form(call["function"]["arguments"])}}
            for call in message.get("tool_calls", ())
        ]
        changed.append({**message, "tool_calls": calls} if calls else message)
    return changed


def as_text(arguments):
    return json.dumps(arguments, ensure_ascii=False)


def in_parts(messages):
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def said_by_system(messages):
    return [{**message, "role": "system"} if message["role"] == "developer" else message for message in messages]


# -- as transformers -------------------------------------------------------------------------------------------------


def forms(messages):
    """Return a chat as its user may write it: arguments as objects or as text, contents as text or as parts, a developer."""
    found = [messages]
    if any("tool_calls" in message for message in messages):
        found.append(with_arguments(messages, as_text))
    if any(message["role"] == "developer" for message in messages):
        found.append(said_by_system(messages))
    return [*found, *map(in_parts, found)]


def variants():
    """Yield everything that a template may be given."""
    for messages in CHATS.values():
        for form in forms(messages):
            for tools in (None, TOOLS):
                values = {"messages": form, "tools": tools, "documents": None, **ENDS}
                yield {**values, "add_generation_prompt": True}
                if form is messages:
                    yield {**values, "add_generation_prompt": False}
                    yield from ({**values, "add_generation_prompt": True, **more} for more in VARIABLES[1:])


def refusal(template, values):
    """Return why a template is not rendered here; "" where it is."""
    try:
        jinja_template.compiled(template)(**values)
    except LlamafuError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ROWS)
def test_the_program_runs_as_in_transformers(template, name):
    """The same text to the letter, or both refuse, whatever it is given."""
    theirs, rendered = chat_template_utils._compile_jinja_template(template), 0
    for values in variants():
        try:
            expected = theirs.render(**values)
        except Exception:  # noqa: BLE001 - templates raise what they like
            assert re.match(r"the model's chat template refuses these messages: .+$", refusal(template, values))
        else:
            assert jinja_template.compiled(template)(**values) == expected, values
            rendered += 1
    assert rendered


def offers(tokenizer, template, messages, **options):
    """Return what transformers makes of a chat, in every form in which its user could write it."""
    found = []
    for form in forms(messages):
        try:
            found.append(tokenizer.apply_chat_template(form, chat_template=template, tokenize=False, **options))
        except Exception:  # noqa: BLE001, S112 - templates raise what they like
            continue
    return found


@pytest.mark.parametrize("name", ROWS)
def test_a_chat_is_what_transformers_makes_of_its_best_form(template, name, tokenizer):
    """A chat in OpenAI's form is rendered as transformers does it in one of the forms that a template may want."""
    model = Told(template)
    for messages in CHATS.values():
        for tools in (None, TOOLS):
            for begins, variables in ((False, {}), (True, {}), (True, {"enable_thinking": False, **VARIABLES[-1]})):
                options = ChatOptions(tools=tools, add_generation_prompt=begins, chat_template_kwargs=variables)
                found = offers(tokenizer, template, messages, tools=tools, add_generation_prompt=begins, **variables)
                try:
                    rendered = chat_template.render(model, messages, options)
                except NoPlaceError:
                    continue
                except LlamafuError:
                    rendered = None
                assert rendered.text in found or rendered.is_generic if rendered else not found, messages


@pytest.mark.parametrize("name", ROWS)
def test_an_answer_is_continued_where_transformers_continues_it(template, name, tokenizer):
    last = {"role": "assistant", "content": "I say"}
    for messages in ([USER, last], [SYSTEM, USER, SAID, AGAIN, last]):
        found = offers(tokenizer, template, messages, continue_final_message=True)
        try:
            rendered = chat_template.render(Told(template), messages).text
        except LlamafuError:
            assert not found
        else:
            assert rendered in found or (not found and rendered.endswith("I say"))


# -- calls -----------------------------------------------------------------------------------------------------------


def takes(model):
    """Return how a template takes tools, as `sources.csv` has it."""
    try:
        prompt, back = (chat_template.render(model, each, ChatOptions(tools=TOOLS)) for each in ([USER], [USER, CALL, RESULT]))
    except LlamafuError:
        return "nothing"
    assert "sunny today" in back.text
    if back.is_generic:
        assert '{"name": "weather", "arguments": {"city": ' in back.text
        with pytest.raises(LlamafuError):
            chat_template.render(model, [USER, CALL, RESULT], ChatOptions(tools=TOOLS, generic_tools=False))
    return "text" if prompt.is_generic else "tools, calls as text" if back.is_generic else "tools"


def written(model, message, tools):
    """Return what a template writes of an assistant's message; None where it has no place for calls."""
    rendered = chat_template.render(model, [USER, message], ChatOptions(tools=tools, add_generation_prompt=False))
    if rendered.is_generic:
        return None
    shown, prompt = rendered.text, chat_template.render(model, [USER], ChatOptions(tools=tools)).text
    at = next((i for i, (one, other) in enumerate(zip(shown, prompt, strict=False)) if one != other), len(prompt))
    marks = family_of(model.template).form.marks
    return shown[min([at, *(found for mark in marks if (found := shown.find(mark, max(0, at - len(mark)))) >= 0)]) :]


@pytest.mark.parametrize("name", ROWS)
def test_what_a_template_writes_is_read(template, name):
    """Its family is known, and its own calls in the history are read as the same calls."""
    model, family, row = Told(template), family_of(template), ROWS[name]
    assert (family.name if family else "") == row["family"]
    assert takes(model) == row["takes"]
    for message in [] if family is None else [CALL] if family.form.between is None else [CALL, CALLS]:
        text = written(model, message, TOOLS if row["takes"] == "tools" else None)
        assert bool(text) == (row["calls"] == "shown")
        if not text:
            return
        parser = AnswerParser(AnswerFormat(form=family.form, tools=callable_tools(TOOLS), reasoning=reasoning_of(template)))
        parser.feed(text)
        parser.finish()
        expected = [(call["function"]["name"], ARGUMENTS) for call in message["tool_calls"]]
        assert [(call.name, json.loads(call.arguments)) for call in parser.tool_calls] == expected


def test_most_families_are_read_through_a_template():
    """Of the others no template here writes calls; `tests/generation` has their texts."""
    read = {row["family"] for row in ROWS.values() if row["calls"] == "shown"}
    assert {family.name for family in FAMILIES} - read == {"FunctionGemma", "Granite", "InternLM", "Phi-4"}


def test_a_template_that_is_here_has_a_source():
    there = {path.stem for path in FOLDER.glob("*.jinja")}
    assert there <= set(ROWS)
    assert len({path.read_bytes() for path in FOLDER.glob("*.jinja")}) == len(there)
    assert all(row["model"] and row["source"] and row["licence"] for row in ROWS.values())
