"""What requests may say: bodies of the generating routes, and which adapters they choose."""

import gc
import json

import pytest
from helpers.cpu_time import best_cpu_seconds
from hypothesis import given
from hypothesis import strategies as st

from llamafu._util.nulls import without_nulls
from llamafu.generation.options import Options
from llamafu.generation.sampler_order import SAMPLERS
from llamafu.server.schemas.adapter_choice import NumberedScales, resolve_adapters
from llamafu.server.schemas.adapter_requests import LoraLoadBody
from llamafu.server.schemas.json_body import read_json
from llamafu.server.schemas.reading import read_body
from llamafu.server.schemas.requests import ChatBody, CompletionBody
from llamafu.service import InvalidRequestError, LoraLoadRequest, NotFoundError

HI = [{"role": "user", "content": "hi"}]
BIAS = "an object of token ids or texts with numbers, or a list of such pairs"
PROMPTS = "give a string, or token ids, or a list of strings, or a list of lists of token ids"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def completion(**fields):
    return read_body(CompletionBody, {"prompt": "Once", **fields})


def chat(**fields):
    return read_body(ChatBody, {"messages": HI, **fields})


def asked(**fields):
    """What a completion asks of the engine beside its length."""
    options = completion(**fields).options()
    assert options.pop("max_tokens") == -1
    return options


def problems(kind, data):
    with pytest.raises(InvalidRequestError) as caught:
        read_body(kind, data)
    return caught.value.problems


# -- what becomes of fields ---------------------------------------------------------------------------------------


def test_nothing_given_is_the_engine_s_choice():
    """But for the length of the answer: without `max_tokens` it may fill the context."""
    assert completion().options() == chat().options() == {"max_tokens": -1}
    assert (completion().prompt, completion().n, completion().stream) == (["Once"], 1, False)


def test_zeros_survive():
    body = completion(temperature=0, top_k=0, seed=0, logprobs=0, min_p=0.0, ignore_eos=False)
    wanted = {"temperature": 0.0, "top_k": 0, "seed": 0, "logprobs": 0, "min_p": 0.0, "ignore_eos": False, "max_tokens": -1}
    assert body.options() == wanted


def test_null_is_absent():
    assert (
        completion(**dict.fromkeys(["temperature", "seed", "stop", "n", "stream", "lora", "best_of", "user", "model"])).n == 1
    )


def test_every_option_reaches_the_engine():
    given = {"max_tokens": 3, "temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1, "repeat_penalty": 1.1, "seed": 5}
    given |= {"frequency_penalty": -0.5, "presence_penalty": 0.5, "stop": "a", "grammar": 'root ::= "a"', "logprobs": 2}
    given |= {"min_keep": 2, "typical_p": 0.9, "top_n_sigma": 2.0, "xtc_probability": 0.5, "xtc_threshold": 0.2, "mirostat": 1}
    given |= {"mirostat_tau": 3.0, "mirostat_eta": 0.2, "repeat_last_n": -1, "dry_multiplier": 0.8, "dry_base": 1.5}
    given |= {"dry_allowed_length": 3, "dry_penalty_last_n": 9, "dry_sequence_breakers": ["a"], "samplers": ["top_k", "dry"]}
    given |= {"logit_bias": {" a": 1.0}, "min_tokens": 2}
    options = Options.of(completion(**given).options())
    assert options.stops == ("a",)
    assert {name: getattr(options, name) for name in given if name != "stop"} == {k: v for k, v in given.items() if k != "stop"}


OTHER_NAMES = {
    "repeat_penalty": (1.5, ["repetition_penalty", "rep_pen"]),
    "repeat_last_n": (-1, ["penalty_range", "repetition_range", "repetition_penalty_range", "rep_pen_range"]),
    "typical_p": (0.5, ["typical"]),
    "top_n_sigma": (1.5, ["nsigma"]),
    "mirostat": (2, ["mirostat_mode"]),
    "min_tokens": (2, ["min_length"]),
    "regex": ("a", ["guided_regex", "regex_pattern"]),
    "choices": (["a", "b"], ["guided_choice"]),
    "grammar": ("a", ["grammar_string", "guided_grammar"]),
    "json_schema": ({"type": "null"}, ["guided_json"]),
}


@pytest.mark.parametrize("option", OTHER_NAMES)
def test_other_names_for_the_same(option):
    value, others = OTHER_NAMES[option]
    for name in (option, *others):
        assert asked(**{name: value}) == {option: value}


@pytest.mark.parametrize(
    ("given", "bias"),
    [
        ({"50256": -100, " a": 2.5}, {50256: -100, " a": 2.5}),
        ([[5, 1.5], ["b", False]], {5: 1.5, "b": False}),
        ({"9" * 5000: 1}, {"9" * 5000: 1}),
        ({}, {}),
    ],
)
def test_biases_as_clients_write_them(given, bias):
    assert asked(logit_bias=given) == {"logit_bias": bias}


@pytest.mark.parametrize(
    ("given", "samplers"),
    [
        ("edskypmxt", list(SAMPLERS)),
        ("tki", ["temperature", "top_k"]),
        ("dry", ["dry"]),
        (["penalties", "tfs_z", "typ_p", "infill"], ["penalties", "typ_p"]),
        ([], []),
    ],
)
def test_orders_of_samplers_as_clients_write_them(given, samplers):
    assert asked(samplers=given) == {"samplers": samplers}


def test_breakers_as_json_text():
    for breakers in ('["\\n", ":"]', ["\n", ":"]):
        assert asked(dry_sequence_breakers=breakers) == {"dry_sequence_breakers": ["\n", ":"]}
    assert asked(dry_sequence_breakers="[") == {"dry_sequence_breakers": ["["]}


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"json": {"type": "null"}}, {"json_schema": {"type": "null"}}),
        ({"json": '{"type": "null"}'}, {"json_schema": '{"type": "null"}'}),
        ({"json_object": True}, {"json_schema": {"type": "object"}}),
        ({"regex": "a"}, {"regex": "a"}),
        ({"choice": ["a"]}, {"choices": ["a"]}),
        ({"grammar": "a"}, {"grammar": "a"}),
        ({}, {}),
    ],
)
def test_structured_outputs(given, options):
    assert asked(structured_outputs=given) == options


def test_max_tokens_of_chats():
    assert chat(max_completion_tokens=3).options() == {"max_tokens": 3}
    assert chat(max_tokens=3).options() == {"max_tokens": 3}


@pytest.mark.parametrize(
    ("fields", "schema"),
    [
        ({"json_schema": SCHEMA}, SCHEMA),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"type": "object"}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}}, SCHEMA),
    ],
)
def test_forms_of_the_answer(fields, schema):
    assert chat(**fields).options().get("json_schema") == schema


def test_probabilities():
    assert "logprobs" not in chat().options()
    assert "logprobs" not in chat(logprobs=False).options()
    assert chat(logprobs=True).options()["logprobs"] == 0
    assert chat(logprobs=True, top_logprobs=5).options()["logprobs"] == 5


def test_messages():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "", "tool_call_id": "1"},
    ]
    assert chat(messages=messages).messages == [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "", "tool_call_id": "1"},
    ]


def test_null_is_absent_at_every_depth():
    """What is data keeps its null: values of a schema, arguments of a call, scales."""
    schema = {"type": "object", "title": None, "properties": {"const": {"type": "null", "const": None, "pattern": None}}}
    body = chat(
        stream=True,
        stream_options={"include_usage": None, "include_obfuscation": None},
        response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": None, "schema": schema}},
        tools=[{"type": "function", "strict": None, "function": {"name": "f", "parameters": None}}],
        chat_template_kwargs={"enable_thinking": None},
        lora={"a": None},
        top_logprobs=None,
    )
    assert body.stream_options.include_usage is False
    wanted = {"type": "object", "properties": {"const": {"type": "null", "const": None}}}
    assert body.options()["json_schema"] == wanted
    assert body.chat_options()["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert body.chat_options()["chat_template_kwargs"] == {}
    assert body.lora == {"a": None}  # refused where it is read; without the name it would be the base model
    assert without_nulls({"enum": [None, 1], "default": None, "a": [None, {"b": None}]}) == {
        "enum": [None, 1],
        "default": None,
        "a": [None, {}],
    }


def test_seeds_of_64_bits():
    for seed in (-1, -(2**63), 2**64 - 1):
        assert Options.of(completion(seed=seed).options()).seed == seed


def test_what_the_template_is_given_goes_by_two_names():
    for name in ("chat_template_kwargs", "template_vars"):
        assert chat(**{name: {"a": 1}}).chat_options()["chat_template_kwargs"] == {"a": 1}
    given = {"add_generation_prompt": False, "continue_final_message": True}
    assert chat(**given).chat_options().items() >= given.items()
    assert chat(tools=[{}], tool_choice="none").chat_options()["tool_choice"] == "none"


def test_what_clients_send_without_effect():
    assert chat(user="me", store=False, metadata={}, service_tier="auto") == chat()
    assert completion(echo=False, best_of=1, tfs=1.0, logit_bias={}, mirostat=0, suffix=None).options() == {
        "logit_bias": {},
        "max_tokens": -1,
        "mirostat": 0,
    }


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({}, "prompt is missing"),
        ({"prompt": 3}, f"prompt is 3; {PROMPTS}"),
        ({"prompt": []}, "prompt is a list; give at least one token id, or a string"),
        ({"prompt": [[5], []]}, "prompt[1] is empty; give a list of token ids, at least one"),
        ({"prompt": ["a", 3]}, "prompt[1] is 3; give a string"),
        ({"prompt": [5, "a"]}, "prompt[1] is 'a'; give a token id"),
        ({"prompt": [[5], [6, -1]]}, "prompt[1][1] is -1; give a token id"),
        ({"prompt": [[5], None]}, "prompt[1] is empty; give a list of token ids, at least one"),
        ({"prompt": {"a": 1}}, f"prompt is an object; {PROMPTS}"),
        ({"prompt": "a", "temperature": -1}, "temperature is -1; it should be greater than or equal to 0"),
        ({"prompt": "a", "temperature": "1"}, "temperature is '1'; it should be a valid number"),
        ({"prompt": "a", "max_tokens": -2}, "max_tokens is -2; it should be greater than or equal to -1"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens is 1.5; it should be a valid integer"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens is True; it should be a valid integer"),
        ({"prompt": "a", "seed": 2**64}, f"seed is {2**64}; it should be less than or equal to {2**64 - 1}"),
        ({"prompt": "a", "temprature": 1}, "'temprature' is not a field; did you mean 'temperature'?"),
        ({"prompt": "a", "messages": []}, "'messages' is not a field"),
        ({"prompt": "a", "stream_options": {"include_usages": True}}, "'stream_options.include_usages' is not a field"),
        ({"prompt": "a", "max_tokens": 1, "n_predict": 2}, "'n_predict' is another name of a field that was given; give one"),
        ({"prompt": "a", "stop": [3]}, "stop[0] is 3; give a string"),
        (
            {"prompt": "a", "use_beam_search": True},
            "use_beam_search is True; this server cannot do that: answers are sampled; leave it out, and use n for several",
        ),
        ({"prompt": "a", "logit_bias": {"5": 101}}, "logit_bias[5]=101: give a number from -100 to 100, or False for never"),
        ({"prompt": "a", "logit_bias": [["a", 1], ["a", 2]]}, "logit_bias holds 'a' twice; give it once"),
        ({"prompt": "a", "logit_bias": [5]}, f"logit_bias holds 5; give {BIAS}"),
        ({"prompt": "a", "logit_bias": "a"}, f"logit_bias is 'a'; give {BIAS}"),
        ({"prompt": "a", "n": 17}, "n is 17; it should be less than or equal to 16"),
        ({"prompt": ["a"] * 17}, "prompt is a list; it should have at most 16 items, not 17"),
        ({"prompt": "a", "stop": ["a"] * 65}, "stop is a list; it should have at most 64 items, not 65"),
        (
            {"prompt": ["a"] * 4, "n": 5},
            "4 prompts times n=5 is more than 16 answers; ask for fewer at a time",
        ),
    ],
)
def test_bad_completions(data, problem):
    (found,) = problems(CompletionBody, data)
    assert found.startswith(problem)


def calling(*arguments):
    """A message that calls a function so many times."""
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": each}} for each in arguments]}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"messages": []}, "messages is empty; give at least one, such as "),
        ({"messages": [{"content": "a"}]}, "messages[0].role is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content is 3; give a string, or a list of text parts"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]: image_url is {}; give {'url': 'data:image/png;base64,...'}",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]},
            "messages[0].content[0].type is 'image'; give one of 'image_url', 'input_audio'",
        ),
        ({"messages": HI * 3001}, "messages is a list; give at most 3,000 messages, not 3,001"),
        (
            {"messages": [{"role": "user", "content": [{"text": "a"}] * 20_001}]},
            "messages is a list; give at most 20,000 parts",
        ),
        ({"messages": [calling("{}")] * 2 + [calling(*["{}"] * 20_000)]}, "messages is a list; give at most 20,000 parts"),
        ({"tools": [{}] * 1001}, "tools is a list; it should have at most 1000 items, not 1001"),
        (
            {"messages": [calling({"a": [float("inf")]})]},
            "messages[0].tool_calls[0].function.arguments has a number that is NaN, infinite or beyond 1.8e308",
        ),
        ({"top_logprobs": 3}, "top_logprobs was given without logprobs: true"),
        ({"response_format": {"type": "xml"}}, "response_format.type is 'xml'; it should be"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema is missing"),
        ({"json_schema": SCHEMA, "grammar": "x"}, "grammar and json_schema were given together"),
        (
            {"choices": ["a"], "structured_outputs": {"regex": "x"}},
            "choices and structured_outputs.regex were given together; give one of them",
        ),
        (
            {"structured_outputs": {"regex": "x", "choice": ["y"]}},
            "structured_outputs.regex and structured_outputs.choices were given together; give one of them",
        ),
    ],
)
def test_bad_chats(fields, problem):
    (found,) = problems(ChatBody, {"messages": HI, **fields})
    assert found.startswith(problem)


def test_a_million_token_ids_are_read_and_no_more():
    assert len(completion(prompt=[1] * 1_000_000).prompt[0]) == 1_000_000
    (found,) = problems(CompletionBody, {"prompt": [[1] * 500_001] * 2})
    assert found == "prompt is a list; give at most 1,000,000 token ids, not 1,000,002"
    (found,) = problems(CompletionBody, {"prompt": [[1] * 50_000 + [-1]]})
    assert found == "prompt[0][50000] is -1; give a token id"
    data = read_json(json.dumps({"prompt": [[1] * 62_000] * 16}).encode())
    assert best_cpu_seconds(lambda: read_body(CompletionBody, data), 1) < 0.3  # a look at each takes a second


def test_a_body_of_a_million_lists_is_refused_before_it_is_read():
    content = b'{"prompt": [' + b"[]," * 1_000_000 + b"[]]}"
    with pytest.raises(InvalidRequestError, match=r"has 1,000,003 of the characters \[ and {, of at most 250,000"):
        read_json(content)
    assert gc.isenabled()


def test_reading_looks_for_no_garbage():
    """What is read is none: collecting it held everybody up for five times as long as reading it."""
    content = b"[" + b"[]," * 200_000 + b"[]]"
    begun = []
    gc.callbacks.append(watch := lambda phase, _: begun.append(phase))
    try:
        read_json(content)
    finally:
        gc.callbacks.remove(watch)
    assert len(begun) <= 4  # the collector's own, as soon as it may look again


def test_a_list_among_samplers_is_refused():
    """It once was an error of the server: a list cannot be looked up in a set."""
    told = problems(CompletionBody, {"prompt": "a", "samplers": [[], {}]})
    assert told == ("samplers[0] is a list; give a string", "samplers[1] is an object; give a string")


def test_every_problem_is_named_at_once():
    found = problems(CompletionBody, {"temperature": "hot", "top_p": 2, "bad_words": ["a"], "x": 1})
    assert [text.split(" ", 1)[0] for text in found] == ["bad_words", "temperature", "top_p", "prompt", "'x'"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": NaN}', b'{"a": Infinity}', b'"\\ud800"', b"\xff", b"[" * 100_000, b"{}x", "é".encode("utf-16")],
)
def test_bodies_that_are_no_json(content):
    with pytest.raises(InvalidRequestError, match="the body is not JSON"):
        read_json(content)


FIELDS = sorted({*CompletionBody.model_fields, *ChatBody.model_fields, "bad_words", "x"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "role", "content", "x"]), inner)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6) | JSON)
def test_anything_is_read_or_refused(data):
    for kind in (CompletionBody, ChatBody):
        try:
            body = read_body(kind, data)
        except InvalidRequestError:
            continue
        body.options()


@given(st.binary(max_size=40) | JSON.map(lambda data: json.dumps(data).encode()))
def test_any_bytes_are_read_or_refused(content):
    try:
        read_json(content)
    except InvalidRequestError as error:
        message = str(error)
        assert message.startswith("the body is not JSON"), "or an exception of another kind would have come"


@given(
    st.dictionaries(
        st.sampled_from(["loras", "skip_queue", "x"]),
        JSON | st.lists(st.dictionaries(st.sampled_from(["name", "scaling", "x"]), JSON, max_size=3), max_size=2),
        max_size=3,
    )
    | JSON
)
def test_the_server_loads_what_the_service_takes(data):
    """The service reads its requests without pydantic, which a client does not install."""
    try:
        wanted = LoraLoadRequest.from_json(data)
    except InvalidRequestError:
        with pytest.raises(InvalidRequestError):
            read_body(LoraLoadBody, data)
    else:
        assert read_body(LoraLoadBody, data).request() == wanted


# -- adapters -----------------------------------------------------------------------------------------------------

THERE = {"base": "smol", "names": ["pirate", "shout"], "name_of": {0: "pirate", 2: "shout"}.get, "scale_range": (0.0, 1.0)}


@pytest.mark.parametrize(
    ("lora", "model", "expected"),
    [
        (None, None, None),
        (None, "smol", None),
        (None, "", None),
        (None, "pirate", {"pirate": 1.0}),
        ({}, "pirate", {}),
        ([], None, {}),
        ([], "pirate", {}),
        ({"pirate": 0}, "shout", {"pirate": 0.0}),
        ({"pirate": 0.5, "shout": 1}, None, {"pirate": 0.5, "shout": 1.0}),
        ([{"name": "pirate", "scale": 0}, {"id": 2, "scale": 0.5}], None, {"pirate": 0.0, "shout": 0.5}),
        ([{"name": "pirate"}, {"id": 2}], None, {"pirate": 1.0, "shout": 1.0}),
        ({"pirate": 0.5}, "nobody", {"pirate": 0.5}),
    ],
)
def test_choice(lora, model, expected):
    assert resolve_adapters(lora, model, **THERE) == expected


@pytest.mark.parametrize(
    ("lora", "model"), [(None, "gpt-4"), ({"gone": 1}, None), ([{"id": 1}], None), ([{"name": "gone"}], None)]
)
def test_what_does_not_exist(lora, model):
    with pytest.raises(NotFoundError, match="no such"):
        resolve_adapters(lora, model, **THERE)


def test_the_adapter_that_was_meant_is_named():
    for lora, model in ((None, "Pirate"), ({"piratte": 1}, None), ([{"name": "pirat"}], None)):
        with pytest.raises(NotFoundError, match="; did you mean 'pirate'?"):
            resolve_adapters(lora, model, **THERE)
    many = {**THERE, "names": [*THERE["names"], *map(str, range(100))]}  # comparing takes time, which streams wait for
    with pytest.raises(NotFoundError) as caught:
        resolve_adapters({"piratte": 1}, None, **many)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("lora", "problem"),
    [
        ("pirate", "lora is a string"),
        (3, "lora is a number"),
        ({"pirate": 1.5}, r"lora\['pirate'\] is 1.5; give a finite number from 0 to 1"),
        ({"pirate": "1"}, "is '1'"),
        ({"pirate": None}, "is None"),
        ({"pirate": True}, "is True"),
        ([{"name": "pirate", "scale": -0.1}], r"lora\[0\].scale is -0.1"),
        ([{"scale": 1}], r"lora\[0\].name is missing"),
        ([{"name": "pirate", "id": 0}], "give one of them"),
        ([{"name": "pirate", "scaling": 1}], "did you mean 'scale'"),
        ([{"name": "pirate"}, {"id": 0}], "names 'pirate' twice"),
        (["pirate"], r"lora\[0\] is a string; give an object"),
        ([{"name": "pirate"}] * 1001, "lora names 1,001 adapters, of at most 1,000"),
        ({f"a{i}": 1 for i in range(1001)}, "lora names 1,001 adapters, of at most 1,000"),
    ],
)
def test_bad_choices(lora, problem):
    with pytest.raises(InvalidRequestError, match=problem):
        resolve_adapters(lora, None, **THERE)


def test_a_list_of_numbered_scales_has_a_bound():
    (found,) = problems(NumberedScales, [{"id": 0, "scale": 1}] * 1001)
    assert found == "lora names 1,001 adapters, of at most 1,000; name each adapter once"
