"""The budget of reasoning: when it ends, what is forced, and that the answer goes on, with tools, schemas and streams."""

import json

import numpy as np
import pytest

from llamafu import Engine, Llamafu
from llamafu._native.model import Model
from llamafu.engine import Request
from llamafu.errors import UnsupportedError
from llamafu.generation.completion import Piece
from llamafu.generation.reasoning_budget import ReasoningBudget
from llamafu.generation.tools.family import FAMILIES
from llamafu.generation.tools.reasoning_marks import ReasoningMarks

USER = {"role": "user", "content": "hi"}
NOW = {"type": "function", "function": {"name": "now", "description": "The time"}}
TURNS = (
    "{# <think></think> <tool_call> #}{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>OPENING{% endif %}"
)
CLOSED = TURNS.replace("OPENING", "")
OPENED = TURNS.replace("OPENING", "<think>\n")
SWITCHED = TURNS.replace("OPENING", "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}")
GREEDY = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
SLACK = len("</think>")
HARMONY = next(family.form for family in FAMILIES if family.name == "gpt-oss").reasoning


def budget(limit, marks=None, *, is_inside=False):
    """A budget of a model whose tokens are bytes."""
    marks = marks or ReasoningMarks("<think>", "</think>")
    closings = [(marks.closing + resume).encode() for resume in marks.resumes]
    return ReasoningBudget(limit, marks, is_inside=is_inside, closings=closings, spell=lambda token: bytes([token]))


def said(budget, wanted):
    """What a model says that wants to say `wanted`, and goes on with it after what is forced."""
    out, rest = bytearray(), list(wanted.encode())
    while rest:
        due = budget.due
        out.append(rest.pop(0) if due is None else due)
        budget.append(out[-1])
    return out.decode()


@pytest.mark.parametrize(
    ("limit", "is_inside", "wanted", "out"),
    [
        (3, True, "abcdef", "abc</think>def"),
        (0, True, "abc", "</think>abc"),
        (2, False, "<think>abcd", "<think>ab</think>cd"),
        (0, False, "<think>abcd", "<think></think>abcd"),
        (2, False, " \n<think>abcd", " \n<think>ab</think>cd"),
        (1, False, "Well. <think>abcd", "Well. <think>abcd"),  # no reasoning, as the answer's reader sees it
        (1, False, "<thick>abcd", "<thick>abcd"),
        (10, False, "<think>ab</think>cd<think>efghijklmnop", "<think>ab</think>cd<think>efghijklmnop"),
        (1, True, "éabc", "é</think>abc"),
        (1, True, "😀abc", "😀</think>abc"),
        (2, True, "a</think>b", "a</think>b"),  # the model ends it itself
        (2, True, "a<bcd", "a<b</think>cd"),
        (1, True, "<" * 20, "<" * (1 + SLACK) + "</think>" + "<" * (19 - SLACK)),  # nobody evades it
        (9, True, "abc", "abc"),
    ],
)
def test_where_it_ends(limit, is_inside, wanted, out):
    assert said(budget(limit, is_inside=is_inside), wanted) == out


def test_reasoning_that_recurs():
    """gpt-oss's: the second time it goes on with the text, since the channel alone did not help."""
    opening, end = "<|channel|>analysis<|message|>", "<|end|><|start|>assistant"
    wanted = f"{opening}abc{opening}def"
    assert said(budget(2, HARMONY), wanted) == f"{opening}ab{end}c{opening}{end}<|channel|>final<|message|>def"
    text = "<|channel|>final<|message|>" + "text" * 20
    assert said(budget(0, HARMONY), text) == text


def test_a_token_that_is_refused_is_tried_again():
    """A grammar may refuse the closing mark for a while."""
    one = budget(1, is_inside=True)
    for token in b"ab</x":
        one.append(token)
        assert one.due == {ord("<"): ord("/"), ord("/"): ord("t")}.get(token, ord("<"))
    for token in b"</think>":
        assert one.due == token
        one.append(token)
    assert one.due is None


# -- with a model -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm(real, tiny_model):
    with Llamafu(tiny_model, n_ctx=512, library=real.path) as llm:
        yield llm


@pytest.fixture(scope="module")
def engine(real, tiny_model):
    with Engine(tiny_model, n_ctx=1024, library=real.path) as engine:
        yield engine


def closing(llm):
    return tuple(llm.tokenize("</think>", add_special=False))


def place_of(tokens, found):
    return next(at for at in range(len(tokens)) if tokens[at : at + len(found)] == found)


@pytest.mark.parametrize("limit", [0, 1, 6])
def test_the_answer_goes_on(llm, engine, limit):
    free = llm.chat([USER], chat_template=OPENED, **GREEDY)
    assert free.reasoning
    assert free.text == ""
    told = llm.chat([USER], chat_template=OPENED, reasoning_budget=limit, **GREEDY)
    at = place_of(told.tokens, closing(llm))
    assert limit <= at <= limit + SLACK
    assert told.tokens[:at] == free.tokens[:at]
    assert told.reasoning == llm.detokenize(told.tokens[:at]).strip()
    assert told.text.strip() == llm.detokenize(told.tokens[at + len(closing(llm)) :]).strip()
    assert told.text
    assert told.usage.completion_tokens == 40
    assert engine.chat([USER], chat_template=OPENED, reasoning_budget=limit, **GREEDY).tokens == told.tokens
    pieces = list(llm.stream_chat([USER], chat_template=OPENED, reasoning_budget=limit, **GREEDY))
    assert "".join(pieces) == told.text
    assert "".join(piece.reasoning for piece in pieces if isinstance(piece, Piece)) == told.reasoning


def test_a_budget_that_is_not_used_up_changes_nothing(llm):
    free = llm.chat([USER], chat_template=OPENED, seed=3, max_tokens=20)
    assert llm.chat([USER], chat_template=OPENED, seed=3, max_tokens=20, reasoning_budget=1000).tokens == free.tokens


def test_a_model_that_begins_to_think_by_itself(llm):
    opening = llm.tokenize("<think>", add_special=False)
    start = len(llm.tokenize_chat([USER], chat_template=CLOSED))

    def think(tokens, logits):
        if (step := len(tokens) - start) < len(opening):
            logits[np.arange(len(logits)) != opening[step]] = -np.inf

    told = llm.chat([USER], chat_template=CLOSED, logits_processor=think, reasoning_budget=2, **GREEDY)
    at = place_of(told.tokens, closing(llm)) - len(opening)
    assert 2 <= at <= 2 + SLACK
    assert told.text
    untouched = llm.chat([USER], chat_template=CLOSED, reasoning_budget=0, **GREEDY)
    assert untouched.tokens == llm.chat([USER], chat_template=CLOSED, **GREEDY).tokens


def test_none_at_all_is_said_to_a_template_that_knows_how(llm):
    def prompt(**options):
        return llm.tokenize_chat([USER], chat_template=SWITCHED, **options)

    off = prompt(chat_template_kwargs={"enable_thinking": False})
    assert prompt(reasoning_budget=0) == off != prompt() == prompt(reasoning_budget=1)
    assert prompt(reasoning_budget=0, chat_template_kwargs={"enable_thinking": True}) == prompt(), "the caller's word counts"
    told = llm.chat([USER], chat_template=SWITCHED, reasoning_budget=0, **GREEDY)
    assert (told.usage.prompt_tokens, told.reasoning) == (len(off), "")


@pytest.mark.parametrize("where", ["model", "engine"])
def test_forced_calls_and_schemas_come_after_it(llm, engine, where):
    """Without a budget this model thinks until the tokens are used up."""
    chat = {"model": llm.chat, "engine": engine.chat}[where]
    options = {"temperature": 0, "max_tokens": 100, "chat_template": OPENED}
    tools = {"tools": [NOW], "tool_choice": "required", "parallel_tool_calls": False}
    assert chat([USER], **tools, **options).finish_reason == "length"
    told = chat([USER], reasoning_budget=4, **tools, **options)
    assert told.finish_reason == "tool_calls"
    assert [(call.name, call.arguments) for call in told.tool_calls] == [("now", "{}")]
    assert told.reasoning
    told = chat([USER], reasoning_budget=4, json_schema={"enum": ["a", "b"]}, **options)
    assert json.loads(told.text) in {"a", "b"}
    assert told.reasoning


def test_a_grammar_of_the_callers_leaves_no_reasoning(llm):
    told = llm.chat([USER], chat_template=OPENED, grammar='root ::= "yes"', reasoning_budget=3, **GREEDY)
    assert (told.text, told.reasoning) == ("yes", "")


def test_a_template_without_marks_leaves_nothing_to_do(llm):
    plain = CLOSED.replace("{# <think></think> <tool_call> #}", "")
    told = llm.chat([USER], chat_template=plain, reasoning_budget=0, **GREEDY)
    assert told.tokens == llm.chat([USER], chat_template=plain, **GREEDY).tokens


def test_marks_that_are_control_tokens(llm, monkeypatch):
    """Magistral's: they write nothing, and each is one token."""
    session = llm._session.instance.model
    end = next(iter(session.end_tokens))
    spare = next(token for token in range(session.n_vocab) if token != end and not session.token_bytes(token))
    single = Model.single_token
    monkeypatch.setattr(Model, "single_token", lambda self, text: spare if text == "[/THINK]" else single(self, text))
    tokenize = Model.tokenize
    monkeypatch.setattr(
        Model, "tokenize", lambda self, text, **how: [spare] if text == "[/THINK]" else tokenize(self, text, **how)
    )
    template = OPENED.replace("<think></think>", "[THINK][/THINK]").replace("<think>", "[THINK]")
    for options in ({}, {"tools": [NOW], "parallel_tool_calls": False}):  # the second is held by a grammar
        told = llm.chat([USER], chat_template=template, reasoning_budget=5, **options, **GREEDY)
        assert 5 <= told.tokens.index(spare) <= 5 + SLACK
        assert told.reasoning
        assert told.text or told.tool_calls


@pytest.mark.parametrize("limit", [-2, 1.5, True, "many", None])
def test_what_is_no_budget(llm, limit):
    with pytest.raises(ValueError, match=r"reasoning_budget=.* is not a whole number of at least -1"):
        llm.chat([USER], reasoning_budget=limit)


def test_a_completion_has_no_marks(llm, engine):
    for complete in (
        llm.complete,
        engine.complete,
        lambda *args, **how: engine.complete_many([Request(prompt=args[0], **how)]),
    ):
        with pytest.raises(UnsupportedError, match="reasoning_budget=3: the marks of reasoning are known by a chat's template"):
            complete("Once", reasoning_budget=3, max_tokens=1)
        assert complete("Once", reasoning_budget=-1, max_tokens=1)
