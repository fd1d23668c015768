"""llama-server's own routes, and vLLM's, over a real engine: what llama.cpp's README and vLLM's clients expect of them."""

import json
import shutil

import httpx
import pytest
from helpers.infill_model import MARKS, write_infill_model
from helpers.serving import ADMIN, API, serving
from tiny_model import BOS, FIRST_BYTE

from llamafu import __version__
from llamafu.engine import Engine, Request
from llamafu.generation.infill import InfillText, InfillTokens

GREEDY = {"temperature": 0, "ignore_eos": True}
CHAT = [{"role": "user", "content": "hi"}]
ASKS = {"prompt": "hello world", "n_predict": 6, **GREEDY}


@pytest.fixture(scope="module")
def engine(real, tmp_path_factory):
    model = write_infill_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    with Engine(model, n_ctx=512, n_threads=1, library=real.path) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine, tiny_adapter_a, tiny_adapter_b, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copy(tiny_adapter_a, folder / "a.gguf")
    shutil.copy(tiny_adapter_b, folder / "b.gguf")
    with (
        serving(engine, model=engine.path, adapters=folder) as url,
        httpx.Client(base_url=url, headers={"X-Api-Key": API}, timeout=30) as client,
    ):
        yield client


def asked(client, route="/completion", **body):
    told = client.post(route, json=body)
    assert told.status_code == 200, told.text
    return told.json()


def refused(client, route="/completion", **body):
    told = client.post(route, json=body)
    assert told.status_code == 400, told.text
    return told.json()["error"]["message"]


def streamed(client, route="/completion", **body):
    text = client.post(route, json={**body, "stream": True}).text
    assert all(line.startswith("data: {") for line in text.split("\n\n") if line)  # llama-server sends no [DONE] here
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]


def completed(engine, prompt, **options):
    return engine.complete_many([Request(prompt=prompt, **{**GREEDY, "lora": {}, "max_tokens": 6, **options})])[0]


# -- /completion ----------------------------------------------------------------------------------------------------


def test_an_answer_has_every_field(client, engine):
    told = asked(client, **ASKS)
    wanted = completed(engine, "hello world")
    assert told["content"] == wanted.text
    tokens = engine.tokenize("hello world")
    expected = {"index": 0, "tokens": [], "id_slot": -1, "stop": True, "model": "tiny", "prompt": "<s>hello world"}
    expected |= {"tokens_predicted": 6, "tokens_evaluated": len(tokens), "truncated": False, "stop_type": "limit"}
    expected |= {"stopping_word": "", "has_new_line": "\n" in wanted.text, "tokens_cached": 0, "lora": []}
    assert expected.items() <= told.items()
    assert told["timings"]["prompt_n"] == len(tokens)
    assert told["timings"]["predicted_n"] == 6
    assert told["timings"]["predicted_per_second"] > 0
    settings = told["generation_settings"]
    assert {"n_predict": 6, "max_tokens": 6, "temperature": 0, "ignore_eos": True, "stream": False}.items() <= settings.items()
    assert {"top_k": 40, "repeat_last_n": 64, "n_probs": 0, "grammar": "", "lora": []}.items() <= settings.items()
    assert settings["samplers"][0] == "penalties"
    assert settings["seed"] >= 0


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ([5, 6, 7], [[5, 6, 7]]),
        ([5, "hello", 6, " you"], [[5, "hello", 6, " you"]]),
        (["hello", 7], [["hello", 7]]),
        ({"prompt_string": "hello"}, [["hello"]]),
        (["hello", [5, "a"], [7], {"prompt_string": "b"}], [["hello"], [5, "a"], [7], ["b"]]),
        (["hello"], [["hello"]]),
    ],
)
def test_forms_of_a_prompt(client, engine, prompt, parts):
    """A BOS goes before a text that comes first, and nowhere else."""
    told = asked(client, **{**ASKS, "prompt": prompt})
    answers = told if isinstance(told, list) else [told]
    assert isinstance(told, list) == (len(parts) > 1)
    for index, (answer, pieces) in enumerate(zip(answers, parts, strict=True)):
        tokens = []
        for piece in pieces:
            tokens += engine.tokenize(piece, add_special=not tokens) if isinstance(piece, str) else [piece]
        assert (tokens[0] == BOS) == isinstance(pieces[0], str)
        assert (answer["index"], answer["content"]) == (index, completed(engine, tokens).text)
        assert answer["tokens_evaluated"] == len(tokens)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (None, "prompt is missing"),
        ([], "give a string, token ids, a list of both"),
        (7, "give a string, token ids, a list of both"),
        ([1, None], "prompt is a list; give a string, or a list of token ids and strings"),
        ([["a"], []], "prompt[1] is a list; give a string, or a list of token ids and strings, at least one"),
        ([-1], "prompt holds -1; give token ids of at least 0"),
        ([99_999], "99999"),
        ({"prompt_string": "a", "multimodal_data": ["x"]}, "only text is read here"),
        ([["a"]] * 17, "at most 16"),
    ],
)
def test_bad_prompts_are_refused_by_name(client, prompt, told):
    assert told in refused(client, **{**ASKS, "prompt": prompt})


def test_how_it_stopped(client, engine):
    wanted = completed(engine, "hello world").text
    told = asked(client, **{**ASKS, "stop": ["no such text", wanted[2:4]]})
    assert (told["content"], told["stop_type"], told["stopping_word"]) == (wanted[:2], "word", wanted[2:4])
    told = asked(client, prompt="a", grammar='root ::= "ab"', temperature=0)
    assert (told["content"], told["stop_type"], told["stopping_word"], told["truncated"]) == ("ab", "eos", "", False)
    told = asked(client, prompt="a", n_predict=-1, **GREEDY)
    assert (told["stop_type"], told["truncated"]) == ("limit", True)
    assert told["tokens_evaluated"] + told["tokens_predicted"] == 512
    told = asked(client, prompt="a", n_predict=0)
    assert (told["content"], told["tokens_predicted"], told["stop_type"]) == ("", 0, "limit")


def test_a_stream_has_the_tokens_and_ends_with_everything(client, engine):
    *chunks, last = streamed(client, **ASKS, timings_per_token=True)
    wanted = completed(engine, "hello world")
    assert "".join(chunk["content"] for chunk in chunks) == wanted.text
    assert [token for chunk in [*chunks, last] for token in chunk["tokens"]] == list(wanted.tokens)
    assert all(chunk["stop"] is False and chunk["index"] == 0 for chunk in chunks)
    assert [chunk["tokens_predicted"] for chunk in chunks] == [*dict.fromkeys(chunk["tokens_predicted"] for chunk in chunks)]
    assert all(chunk["timings"]["predicted_n"] == chunk["tokens_predicted"] for chunk in chunks)
    assert (last["stop"], last["content"], last["stop_type"], last["tokens_predicted"]) == (True, "", "limit", 6)
    assert last["generation_settings"]["stream"] is True
    both = streamed(client, **{**ASKS, "prompt": ["hello", "world"]})
    assert {chunk["index"] for chunk in both if chunk["stop"]} == {0, 1}


def test_probabilities_and_tokens(client, engine):
    wanted = completed(engine, "hello world", logprobs=2)
    told = asked(client, **ASKS, n_probs=2, return_tokens=True)
    assert told["tokens"] == list(wanted.tokens)
    for entry, one in zip(told["completion_probabilities"], wanted.logprobs, strict=True):
        assert (entry["id"], bytes(entry["bytes"])) == (one.token, one.token_bytes)
        assert entry["logprob"] == pytest.approx(one.logprob, abs=1e-5)
        assert [top["id"] for top in entry["top_logprobs"]] == [token for token, _, _ in one.top]
    chunks = streamed(client, **ASKS, n_probs=2)
    parts = [entry for chunk in chunks for entry in chunk.get("completion_probabilities", [])]
    assert [entry["id"] for entry in parts] == list(wanted.tokens)


def test_fields_that_are_asked_for(client):
    told = asked(client, **ASKS, response_fields=["content", "generation_settings/n_predict", "no/such", "stop"])
    assert list(told) == ["content", "generation_settings/n_predict", "stop"]
    assert told["generation_settings/n_predict"] == 6
    told = asked(client, **ASKS, n_probs=1, response_fields=["completion_probabilities"])
    assert list(told) == ["completion_probabilities"]
    assert len(told["completion_probabilities"]) == 6


def test_adapters_by_number(client, engine):
    ids = {one["path"]: one["id"] for one in client.get("/lora-adapters").json()}
    told = asked(client, **ASKS, lora=[{"id": ids["b"], "scale": 0.5}, {"id": ids["a"], "scale": 1.0}])
    assert told["content"] == completed(engine, "hello world", lora={"a": 1.0, "b": 0.5}).text
    assert {one["id"]: one["scale"] for one in told["generation_settings"]["lora"]} == {ids["a"]: 1.0, ids["b"]: 0.5}
    assert {one["name"]: one["scale"] for one in told["lora"]} == {"a": 1.0, "b": 0.5}
    told = asked(client, **ASKS, model="a")
    assert (told["model"], [one["name"] for one in told["lora"]]) == ("a", ["a"])


def test_samplers_and_neutral_fields_are_taken(client, engine):
    sampling = {"repeat_penalty": 1.3, "repeat_last_n": 32, "seed": 7, "temperature": 1.0, "top_k": 5, "min_keep": 2}
    sampling |= {"dry_multiplier": 0.5, "xtc_probability": 0.1, "mirostat": 0, "logit_bias": [[FIRST_BYTE + 97, -1.5]]}
    neutral = {"cache_prompt": True, "id_slot": -1, "n_keep": 0, "n_discard": 0, "n_indent": 0, "t_max_predict_ms": 0}
    neutral |= {"samplers": ["penalties", "dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]}
    neutral |= {
        "dynatemp_range": 0.0,
        "n_probs": 0,
        "post_sampling_probs": False,
        "grammar": "",
        "stop": [],
        "n_cache_reuse": 0,
    }
    told = client.post("/completion", json={"prompt": "hello", "n_predict": 8, **sampling, **neutral})
    assert told.status_code == 200, told.text
    assert "llamafu-ignored" not in told.headers
    wanted = {**sampling, "logit_bias": {FIRST_BYTE + 97: -1.5}, "samplers": neutral["samplers"]}
    assert told.json()["content"] == completed(engine, "hello", max_tokens=8, ignore_eos=False, **wanted).text
    settings = told.json()["generation_settings"]
    assert (settings["repeat_penalty"], settings["seed"]) == (1.3, 7)
    assert settings["logit_bias"] == [{"token": FIRST_BYTE + 97, "bias": -1.5}]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"n_indent": 4, "n_cmpl": 2}, "n_indent and t_max_predict_ms end one answer at a time"),
        ({"n_indent": -1}, "n_indent is -1"),
        ({"post_sampling_probs": True, "n_probs": 2}, "post_sampling_probs is True"),
        ({"n_predict": -3}, "n_predict is -3"),
        ({"n_probs": 21}, "n_probs is 21"),
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"grammar": "root ::= ", "json_schema": {"type": "integer"}}, "give one of them"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client, body, told):
    assert told in refused(client, **{**ASKS, **body})


# -- /infill and suffix -------------------------------------------------------------------------------------------------


def test_infill_is_the_prompt_of_llama_server(client, engine):
    told = asked(client, "/infill", input_prefix="the ", input_suffix=" end", prompt="in", n_predict=6, **GREEDY)
    text = engine.tokenize("the in", add_special=False), engine.tokenize(" end", add_special=False)
    prompt = [BOS, MARKS.prefix, *text[0], MARKS.suffix, *text[1], MARKS.middle]
    assert told["tokens_evaluated"] == len(prompt)
    assert told["content"] == completed(engine, prompt).text
    same = asked(client, "/v1/completions", prompt="the in", suffix=" end", max_tokens=6, **GREEDY)
    assert same["choices"][0]["text"] == told["content"]
    chunks = streamed(client, "/infill", input_prefix="the in", input_suffix=" end", n_predict=6, **GREEDY)
    assert "".join(chunk["content"] for chunk in chunks) == told["content"]


def tokenize(text):
    return list(text.encode())


@pytest.mark.parametrize(
    ("marks", "most", "prompt"),
    [
        (InfillTokens(1, 2, 3), 99, b"\n\n--- snippet ---\n\nxy\x01before\x02after\x03"),
        (InfillTokens(1, 2, 3, 4, 5), 99, b"\x04myproject\n\x05f.py\nxy\x05filename\n\x01before\x02after\x03"),
        (InfillTokens(1, 2, 3, 4, 5), 24, b"\x05filename\n\x01before\x02after\x03"),
        (InfillTokens(1, 2, 3), 14, b"\x01before\x02after\x03"),
        (InfillTokens(1, 2, 3), 11, b"\x01before\x02af\x03"),
        (InfillTokens(1, 2, 3), 7, b"\x01ore\x02a\x03"),
    ],
)
def test_what_is_farthest_from_the_gap_is_left_out(marks, most, prompt):
    text = InfillText("before", "after", [("f.py", "xy")])
    assert bytes(text.prompt(marks, tokenize, most)) == prompt


def test_a_long_infill_fits(client):
    told = asked(client, "/infill", input_prefix="a" * 900, input_suffix="b" * 900, n_predict=8, **GREEDY)
    assert told["tokens_predicted"] == 8
    assert told["tokens_evaluated"] + 8 <= 512


def test_a_model_without_the_marks_says_which(real, tiny_model):
    with Engine(tiny_model, n_ctx=128, n_threads=1, library=real.path) as engine:
        assert engine.model_facts.infill_tokens == InfillTokens()
        with serving(engine, model=tiny_model) as url:
            for path, body in (
                ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
                ("/v1/completions", {"prompt": "a", "suffix": "b"}),
            ):
                told = httpx.post(f"{url}{path}", json=body, headers={"X-Api-Key": API})
                assert told.status_code == 400
                assert "marks no prefix, no suffix, no middle" in told.json()["message"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"prompt": "a", "suffix": "b", "echo": True}, "suffix was given with echo"),
        ({"prompt": [1], "suffix": "b"}, "suffix was given with a prompt of token ids"),
    ],
)
def test_suffixes_that_cannot_be(client, body, told):
    assert told in refused(client, "/v1/completions", **body)


def test_infill_needs_both_sides(client):
    assert "input_suffix is missing" in refused(client, "/infill", input_prefix="a")
    assert "input_extra[0].text is missing" in refused(
        client, "/infill", input_prefix="a", input_suffix="b", input_extra=[{"filename": "x"}]
    )


def test_what_editors_send(client):
    """As llama.vim and llama.vscode do."""
    body = {"input_prefix": "def f(x):\n", "input_suffix": "\n\nprint(f(1))\n", "prompt": "    return ", "n_predict": 8}
    body |= {"input_extra": [{"text": "a = 1", "filename": "a.py", "time": [1, 2]}], "n_indent": 4, "stop": [], "id_slot": 0}
    body |= {"top_k": 40, "top_p": 0.9, "stream": False, "samplers": ["top_k", "top_p", "infill"], "cache_prompt": True}
    body |= {"t_max_prompt_ms": 500, "t_max_predict_ms": 1000, "response_fields": ["content", "timings/prompt_n", "truncated"]}
    told = client.post("/infill", json=body)
    assert told.status_code == 200, told.text
    assert list(told.json()) == ["content", "timings/prompt_n", "truncated"]
    assert told.headers["llamafu-ignored"] == "input_extra[0].time"


@pytest.mark.parametrize(
    ("said", "content"),
    [
        ("ab\n    cd\n  ef", "ab\n    cd\n  "),  # a line that begins too far to the left is cut
        ("ab\n\tcd\nx", "ab\n\tcd\n"),
        ("ab\n\ncd", "ab\n"),
        ("    ab", "    ab"),
    ],
)
def test_lines_that_are_indented_too_little_end_it(client, said, content):
    grammar = f"root ::= {json.dumps(said)}"
    told = asked(client, prompt="a", grammar=grammar, n_indent=1 if "\t" in said else 4, temperature=0, n_predict=40)
    assert told["content"] == content
    is_cut = content != said
    assert told["stop_type"] == ("limit" if is_cut else "eos")


def test_after_its_time_an_answer_ends_with_the_line(client):
    grammar = 'root ::= "aaaa\\n" "bbbb\\n" "cccc"'
    told = asked(client, prompt="a", grammar=grammar, t_max_predict_ms=1, temperature=0, n_predict=40)
    assert (told["content"], told["stop_type"]) in {("aaaa\n", "limit"), ("aaaa\nbbbb\n", "limit")}
    told = asked(client, prompt="a", grammar=grammar, t_max_predict_ms=60_000, temperature=0, n_predict=40)
    assert (told["content"], told["stop_type"]) == ("aaaa\nbbbb\ncccc", "eos")


# -- tokens and prompts ------------------------------------------------------------------------------------------------


def test_tokenize_as_llama_server(client, engine):
    plain, special = engine.tokenize("hello é", add_special=False), engine.tokenize("hello é")
    assert asked(client, "/tokenize", content="hello é") == {"tokens": plain}
    assert asked(client, "/tokenize", content="hello é", add_special=True) == {"tokens": special}
    assert asked(client, "/tokenize", content="<s>")["tokens"] == [BOS]
    assert len(asked(client, "/tokenize", content="<s>", parse_special=False)["tokens"]) == 3
    assert asked(client, "/tokenize", content=[9, "hello"])["tokens"] == [9, *engine.tokenize("hello", add_special=False)]
    pieces = asked(client, "/tokenize", content="hello 漢", with_pieces=True)["tokens"]
    assert pieces[0]["piece"] == "hello"
    spelled = b"".join(bytes(one["piece"]) if isinstance(one["piece"], list) else one["piece"].encode() for one in pieces)
    assert spelled.decode() == "hello 漢"
    assert any(isinstance(one["piece"], list) for one in pieces)
    assert asked(client, "/tokenize", content="") == {"tokens": []}


def test_tokenize_as_vllm(client, engine):
    special = engine.tokenize("hello")
    told = asked(client, "/tokenize", model="tiny", prompt="hello")
    assert told == {"tokens": special, "count": len(special), "max_model_len": 512, "token_strs": None}
    told = asked(client, "/tokenize", prompt="hello", add_special_tokens=False, return_token_strs=True)
    assert (told["tokens"], told["token_strs"]) == (special[1:], ["hello"])
    told = asked(client, "/tokenize", messages=CHAT)
    assert told["tokens"] == list(engine.request_of_chat(CHAT, {}).prompt)
    shorter = asked(client, "/tokenize", messages=CHAT, add_generation_prompt=False)
    assert shorter["count"] < told["count"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "none of content, prompt and messages was given"),
        ({"content": "a", "prompt": "b"}, "content and prompt were given; give one of them"),
        ({"content": "a", "add_special_tokens": True}, "add_special_tokens was given beside content"),
        ({"prompt": "a", "with_pieces": True}, "with_pieces was given beside prompt"),
        ({"messages": CHAT, "add_special_tokens": True}, "a chat's template says"),
        ({"content": 5}, "content is 5; give a string, or a list"),
        ({"content": [None]}, "give a string, or a list"),
        ({"content": "a", "with_piece": True}, "did you mean 'with_pieces'"),
        ({"content": [7] * 100_001, "with_pieces": True}, "with_pieces was given for 100,001 tokens, of at most 100,000"),
    ],
)
def test_bad_texts_are_refused_by_name(client, body, told):
    assert told in refused(client, "/tokenize", **body)


def test_detokenize_in_both_words(client, engine):
    tokens = engine.tokenize("hello world")
    assert asked(client, "/detokenize", tokens=tokens) == {"content": "<s>hello world", "prompt": "<s>hello world"}
    assert "99999" in refused(client, "/detokenize", tokens=[99_999])


def test_the_template_is_applied(client):
    told = asked(client, "/apply-template", messages=CHAT)
    assert told == {"prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"}
    told = asked(client, "/apply-template", messages=[*CHAT, {"role": "assistant", "content": "so"}])
    assert told["prompt"].endswith("<|im_start|>assistant\nso")
    assert "messages is missing" in refused(client, "/apply-template")


# -- facts --------------------------------------------------------------------------------------------------------------


def test_props(client, engine):
    told = client.get("/props").json()
    assert told["default_generation_settings"]["n_ctx"] == 512
    assert told["default_generation_settings"]["params"]["n_predict"] == -1
    assert told["default_generation_settings"]["params"]["temperature"] == 0.8
    assert (told["total_slots"], told["model_alias"], told["model_path"]) == (16, "tiny", "tiny.gguf")
    assert (told["bos_token"], told["eos_token"]) == ("<s>", "</s>")
    assert told["chat_template"] == engine.model_facts.chat_template
    assert told["modalities"] == {"vision": False, "audio": False}


def test_facts_for_everybody(client):
    with httpx.Client(base_url=client.base_url) as bare:
        assert bare.get("/v1/health").json() == {"status": "ok"}
        assert bare.get("/health").json()["status"] == "healthy"
        assert bare.get("/version").json() == {"version": __version__}
        for method in ("GET", "POST"):
            told = bare.request(method, "/ping")
            assert (told.status_code, told.content) == (200, b"")
        assert bare.get("/props").status_code == 401


def test_tokenizer_info(client, engine):
    told = client.get("/tokenizer_info").json()
    assert told == {"bos_token": "<s>", "eos_token": "</s>", "chat_template": engine.model_facts.chat_template}


# -- vLLM's way to unload -------------------------------------------------------------------------------------------------


def test_what_was_unloaded_is_gone_until_it_is_loaded(client, tmp_path):
    admin = {"X-Admin-Key": ADMIN}
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "b"}, headers=admin).status_code == 200
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["tiny", "a"]
    for _ in range(3):  # the folder is looked through meanwhile
        told = client.post("/v1/completions", json={"prompt": "a", "model": "b", "max_tokens": 1})
        assert (told.status_code, told.json()["error"]["code"]) == (404, "not_found")
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "b"}, headers=admin).status_code == 404
    body = {"lora_name": "b", "lora_path": str(tmp_path / "b")}
    told = client.post("/v1/load_lora_adapter", json=body, headers=admin)
    assert (told.status_code, "not in this server's folder" in told.json()["message"]) == (400, True)
    assert client.post("/v1/load_lora_adapter", json={**body, "lora_path": "b"}, headers=admin).status_code == 200
    assert client.post("/v1/completions", json={"prompt": "a", "model": "b", "max_tokens": 1}).status_code == 200
