"""`llamafu serve` with the openai package: what its users call, and every error as its exceptions."""

import asyncio
import json
import shutil
import threading
import time
from typing import Literal

import openai
import pydantic
import pytest
from helpers import doc_pages
from helpers.media_made import data_url, picture, png, tone, wav
from helpers.refusing import BUSY, NARROW, REFUSED, assert_refused, full_queue
from helpers.served import ADMIN, API, running, served, wait_for
from openai import AsyncOpenAI, OpenAI

HI = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0, "max_tokens": 8}
desk = doc_pages.desk  # a fixture
EXCEPTIONS = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    405: openai.APIStatusError,
    429: openai.RateLimitError,
}


class Answer(pydantic.BaseModel):
    """What a structured answer has to be."""

    x: Literal[1, 2]
    sure: bool


@pytest.fixture(scope="module")
def url(real, tiny_model, folder):
    with served(tiny_model, "--adapters", folder, "--library", real.path, "--n-ctx", 4096) as running:
        assert running.url, running.log
        yield running.url


@pytest.fixture
def client(url):
    with OpenAI(base_url=f"{url}/v1", api_key=API, max_retries=0, timeout=20) as client:
        yield client


@pytest.mark.parametrize("kind", ["llava", "gemma3", "qwen2vl", "ultravox"])
def test_media(real, tiny_dir, tmp_path, kind):
    """Other pixels, or another sound, give other logits; an adapter changes them, and at scale 0 it does not."""
    model, adapter = ("tiny-qwen2vl", "qwen2vl-a") if kind == "qwen2vl" else ("tiny", "a")
    shutil.copy(tiny_dir / f"{adapter}.gguf", tmp_path / "a.gguf")
    flags = ("--mmproj", tiny_dir / f"mmproj-{kind}.gguf", "--adapters", tmp_path, "--library", real.path, "--n-ctx", 1024)
    with served(tiny_dir / f"{model}.gguf", *flags) as running:
        assert running.url, running.log
        with OpenAI(base_url=f"{running.url}/v1", api_key=API, max_retries=0, timeout=60) as client:

            def said(seed, lora):
                if kind == "ultravox":
                    data = data_url(wav(tone(1.0, 200.0 + 150 * seed))).partition(",")[2]
                    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
                else:
                    part = {"type": "image_url", "image_url": {"url": data_url(png(picture(40, 56, seed)))}}
                messages = [{"role": "user", "content": [{"type": "text", "text": "what is it"}, part]}]
                answer = client.chat.completions.create(
                    model=model, messages=messages, logprobs=True, top_logprobs=5, extra_body={"lora": lora}, **GREEDY
                )
                return [(one.token, one.logprob) for one in answer.choices[0].logprobs.content]

            base = said(1, [])
            assert said(2, []) != base
            assert said(1, [{"name": "a", "scale": 1.0}]) != base
            assert said(1, [{"name": "a", "scale": 0.0}]) == base
            bad = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]
            with pytest.raises(openai.BadRequestError, match="no image or sound"):
                client.chat.completions.create(model=model, messages=bad)


# -- answers ------------------------------------------------------------------------------------------------------


def test_models(client):
    assert [card.id for card in client.models.list()] == ["tiny", "a", "b"]
    card = client.models.retrieve("a")
    assert (card.id, card.object, card.owned_by, card.parent) == ("a", "model", "llamafu", "tiny")
    assert card.created > 1e9


@pytest.mark.parametrize(
    ("options", "lora"),
    [
        ({"model": "tiny"}, {}),
        ({"model": "a"}, {"a": 1.0}),
        ({"model": "tiny", "extra_body": {"lora": {"a": 0.5, "b": 0.25}}}, {"a": 0.5, "b": 0.25}),
        ({"model": "a", "extra_body": {"lora": [{"name": "b", "scale": 0.5}]}}, {"b": 0.5}),
        ({"model": "a", "extra_body": {"lora": [{"id": 0, "scale": 0.5}]}}, {"a": 0.5}),
        ({"model": "a", "extra_body": {"lora": []}}, {}),
    ],
)
def test_adapters_by_name_and_in_the_extra_body(client, alone, options, lora):
    told = client.chat.completions.create(messages=HI, **options, **GREEDY)
    wanted = alone.chat(HI, lora=lora, **GREEDY)
    [choice] = told.choices
    assert (choice.message.role, choice.message.content) == ("assistant", wanted.text)
    assert choice.finish_reason == wanted.finish_reason
    assert told.model == options["model"]
    assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (wanted.usage.prompt_tokens, 8)
    assert told.usage.total_tokens == told.usage.prompt_tokens + 8
    assert {one["name"]: one["scale"] for one in told.lora} == lora
    told = client.completions.create(prompt="hello", **options, **GREEDY)
    assert told.choices[0].text == alone.complete("hello", lora=lora, **GREEDY).text


def test_streams_with_usage(client, alone):
    wanted = alone.chat(HI, lora={"a": 1.0}, **GREEDY)
    options = {"model": "a", "stream": True, "stream_options": {"include_usage": True}, **GREEDY}
    *chunks, end, last = client.chat.completions.create(messages=HI, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert end.choices[0].finish_reason == "length"
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (wanted.usage.prompt_tokens, 8)
    pieces = [chunk.choices[0].text for chunk in client.completions.create(model="a", prompt="hello", stream=True, **GREEDY)]
    assert "".join(pieces) == alone.complete("hello", lora={"a": 1.0}, **GREEDY).text


def test_a_stream_that_is_left_frees_its_sequence(url, client):
    with client.completions.create(
        model="tiny", prompt="hello", max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        next(stream)
        assert running(url) == 1
    assert wait_for(lambda: running(url) == 0, 5)


def test_structured_answers(client):
    options = {"model": "tiny", "messages": HI, "temperature": 0, "max_tokens": 60}
    assert isinstance(client.chat.completions.parse(response_format=Answer, **options).choices[0].message.parsed, Answer)
    with client.chat.completions.stream(response_format=Answer, **options) as stream:
        kinds = {event.type for event in stream}
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Answer)
    assert {"chunk", "content.delta", "content.done"} <= kinds
    schema = {"name": "answer", "schema": Answer.model_json_schema(), "strict": True}
    told = client.chat.completions.create(response_format={"type": "json_schema", "json_schema": schema}, **options)
    Answer.model_validate_json(told.choices[0].message.content)
    told = client.completions.create(
        model="tiny", prompt="hello", temperature=0, max_tokens=60, extra_body={"json_schema": Answer.model_json_schema()}
    )
    Answer.model_validate_json(told.choices[0].text)


def test_tools(client):
    """Calls that a grammar holds the model to, whole and streamed, and their results; its template has no place for any."""
    schema = {"type": "object", "properties": {"q": {"enum": ["a", "b"]}}, "required": ["q"], "additionalProperties": False}
    function = {"name": "look", "description": "d", "parameters": schema, "strict": True}
    options = {
        "model": "tiny",
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "max_tokens": 200,
        "temperature": 0,
    }
    [choice] = client.chat.completions.create(messages=HI, **options).choices
    [call] = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, call.function.name) == ("tool_calls", None, "look")
    with client.chat.completions.stream(messages=HI, **options) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0].message.tool_calls[0].function
    assert "tool_calls.function.arguments.done" in kinds
    assert (final.arguments, final.parsed_arguments) == (call.function.arguments, json.loads(call.function.arguments))
    messages = [*HI, choice.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "found"}]
    assert client.chat.completions.create(messages=messages, **{**options, "tool_choice": "none"}).choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="tool_choice names 'f'"):
        client.chat.completions.create(
            messages=HI, **{**options, "tool_choice": {"type": "function", "function": {"name": "f"}}}
        )


def test_logprobs(client, alone):
    wanted = alone.chat(HI, logprobs=2, **GREEDY).logprobs
    told = (
        client.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=2, **GREEDY).choices[0].logprobs
    )
    assert [one.logprob for one in told.content] == pytest.approx([one.logprob for one in wanted], abs=5e-3)
    assert [one.token for one in told.content] == [one.text for one in wanted]
    assert {len(one.top_logprobs) for one in told.content} == {2}
    wanted = alone.complete("hello", logprobs=2, **GREEDY).logprobs
    told = client.completions.create(model="tiny", prompt="hello", logprobs=2, **GREEDY).choices[0].logprobs
    assert told.token_logprobs == pytest.approx([one.logprob for one in wanted], abs=5e-3)
    assert told.text_offset[0] == 0


def test_n_stop_and_seed(client, alone):
    options = {"model": "tiny", "prompt": "hello", "temperature": 1, "max_tokens": 8}
    texts = [choice.text for choice in client.completions.create(n=3, seed=4, best_of=3, **options).choices]
    assert len(set(texts)) == 3
    assert client.completions.create(seed=5, **options).choices[0].text == texts[1]
    assert texts[0] == alone.complete("hello", seed=4, temperature=1.0, max_tokens=8).text
    greedy = alone.complete("hello", **GREEDY).text
    stop = next(character for character in greedy if character.isalnum())
    [choice] = client.completions.create(model="tiny", prompt="hello", stop=[stop], **GREEDY).choices
    assert (choice.finish_reason, choice.text) == ("stop", greedy.partition(stop)[0])


def test_prompts_of_token_ids(client, alone):
    tokens = alone.tokenize("hello")
    told = client.completions.create(model="a", prompt=[tokens, tokens], **GREEDY)
    assert {choice.text for choice in told.choices} == {alone.complete("hello", lora={"a": 1.0}, **GREEDY).text}
    with pytest.raises(openai.BadRequestError, match="99999"):
        client.completions.create(model="a", prompt=[99_999], **GREEDY)


def test_embeddings(client):
    """The package asks for base64 and decodes it, unless a float is asked for."""
    told = client.embeddings.create(model="tiny", input=["hello", "help"])
    floats = client.embeddings.create(model="tiny", input=["hello", "help"], encoding_format="float")
    for one, other in zip(told.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert sum(number**2 for number in one.embedding) == pytest.approx(1, abs=5e-3)
    adapted = client.embeddings.create(model="a", input="hello").data[0].embedding
    assert adapted != pytest.approx(told.data[0].embedding, abs=1e-3)
    half = client.embeddings.create(model="a", input="hello", extra_body={"lora": {"a": 0.5}}).data[0].embedding
    assert half != pytest.approx(adapted, abs=1e-3)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="gone", input="hello")
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="tiny", input="hello", dimensions=8)


def test_managing_adapters_with_it(url):
    """Its own way to call what it has no method for."""
    with OpenAI(base_url=f"{url}/v1", api_key=ADMIN) as client:
        loras = [{"name": "a", "scaling": 0.8}, {"name": "b", "scaling": 0.5}]
        assert [card["id"] for card in client.get("/loras", cast_to=object)["data"]] == ["a", "b"]
        told = client.post("/lora/load", body={"loras": loras}, cast_to=object)
        assert told == {"success": ["a", "b"], "failure": []}
        active = client.get("/lora", cast_to=object)["data"]
        assert {card["id"]: card["scaling"] for card in active} == {"a": 0.8, "b": 0.5}
        told = client.chat.completions.create(model="tiny", messages=HI, **GREEDY)
        assert {one["name"]: one["scale"] for one in told.lora} == {"a": 0.8, "b": 0.5}
        assert client.post("/lora/unload", cast_to=object) == {}
        assert client.get("/lora", cast_to=object)["data"] == []


# -- refusals -----------------------------------------------------------------------------------------------------


def asked(url, wanted):
    """Make a request of the table with it, and return its exception."""
    options = {} if wanted.key else {"options": {"headers": {"Authorization": openai.Omit()}}}
    body = {} if wanted.method == "GET" else {"body": wanted.body}
    client = OpenAI(base_url=url, api_key=wanted.key or "unused", max_retries=0, timeout=20)
    with client, pytest.raises(openai.APIError) as told:
        getattr(client, wanted.method.lower())(wanted.path, cast_to=object, **body, **options)
    return told.value


@pytest.mark.parametrize("wanted", REFUSED, ids=str)
def test_every_refusal_is_its_exception(url, wanted):
    error = asked(url, wanted)
    assert type(error) is EXCEPTIONS[wanted.status]
    assert error.code == wanted.code
    assert_refused(wanted, error.status_code, error.response.json())
    assert error.body["message"] in str(error)


def test_a_full_queue_is_a_rate_limit_and_retried(real, tiny_model):
    with (
        served(tiny_model, "--library", real.path, *NARROW) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key=API, max_retries=0, timeout=20) as client,
    ):
        with full_queue(server.url) as leave:
            error = asked(server.url, BUSY)
            assert (type(error), error.code) == (openai.RateLimitError, "rate_limit_exceeded")
            assert_refused(BUSY, error.status_code, error.response.json())
            assert int(error.response.headers["retry-after"]) >= 1
            timer = threading.Timer(0.4, leave)
            timer.start()
            began = time.monotonic()
            told = client.with_options(max_retries=2).completions.with_raw_response.create(
                model="tiny", prompt="hello", max_tokens=1
            )
            timer.join()
        assert told.retries_taken >= 1
        assert time.monotonic() - began >= 1  # what Retry-After said
        assert told.parse().usage.completion_tokens == 1


# -- the page -----------------------------------------------------------------------------------------------------


def test_the_page_of_clients(desk):
    """`make test` runs it without its part about this package."""
    page = doc_pages.ROOT / "docs" / "clients.md"
    assert "from openai import" in page.read_text("utf-8")
    with doc_pages.served(page, desk) as address:
        doc_pages.run_page(page, address)


# -- asyncio ------------------------------------------------------------------------------------------------------


def test_mixes_at_once(url, alone):
    mixes = [{}, {"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": 0.5}] * 2

    async def one(client, mix):
        options = {"model": "tiny", "messages": HI, "stream": True, "extra_body": {"lora": mix}, **GREEDY}
        return "".join(
            [chunk.choices[0].delta.content or "" async for chunk in await client.chat.completions.create(**options)]
        )

    async def all_of_them():
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=API) as client:
            return await asyncio.gather(*(one(client, mix) for mix in mixes))

    for mix, text in zip(mixes, asyncio.run(all_of_them()), strict=True):
        assert text == alone.chat(HI, lora=mix, **GREEDY).text, mix


@pytest.mark.parametrize("stream", [True, False])
def test_a_cancelled_task_frees_its_sequence(url, stream):
    async def ask(client):
        options = {"model": "tiny", "prompt": "hello", "max_tokens": 3000, "extra_body": {"ignore_eos": True}}
        answer = await client.completions.create(stream=stream, **options)
        async for _ in answer:
            pass

    async def cancelled():
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=API, max_retries=0) as client:
            task = asyncio.create_task(ask(client))
            assert await asyncio.to_thread(wait_for, lambda: running(url) == 1, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(wait_for, lambda: running(url) == 0, 1.5)

    asyncio.run(cancelled())
