"""Sweeps: the divergence against NumPy alone, forced logits against the reference, and what a run, a page and a table say."""

import dataclasses
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.peft_folders import arrays_of, write_folder
from tiny_model import BOS, FIRST_BYTE

from llamafu import Llamafu
from llamafu.cli import sweep_table
from llamafu.cli.main import main
from llamafu.errors import ContextOverflowError, DecodeError, InvalidScaleError, LoraNotFoundError
from llamafu.generation.sampling import log_softmax
from llamafu.sweep import MOST_ANSWERS, Answer, Sweep, SweptAdapter, divergences, label, mixes, page, sweep

PROMPT = [BOS, *(FIRST_BYTE + byte for byte in b"Once upon a time")]
SAID = [
    FIRST_BYTE + byte for byte in b"there was an adapter of rank four that changed what each token made likely, one by one."
]
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def llm(tiny_model, tiny_adapter_a, tiny_adapter_b, tiny_dir):
    """The tiny model at full precision, with `a`, `b` and the activated `alora` loaded."""
    with Llamafu(tiny_model, n_ctx=256, n_threads=1, flash_attn="off", type_k="f32", type_v="f32") as opened:
        for path in (tiny_adapter_a, tiny_adapter_b, tiny_dir / "alora.gguf"):
            opened.load_lora_adapter(path)
        yield opened


def nats(base, mixed):
    """KL(base || mixed) of one row, as the textbook writes it."""
    p, q = np.exp(base) / np.exp(base).sum(), np.exp(mixed) / np.exp(mixed).sum()
    return float(np.sum(p * np.log(p / q)))


# -- the divergence --------------------------------------------------------------------------------------------------


def test_divergence_by_hand():
    """For p = (1/2, 1/2) and q = (9/10, 1/10): ln(5/3) nats this way round, 0.368 the other way."""
    base, mixed = np.log([[0.5, 0.5]], dtype=np.float32), np.log([[0.9, 0.1]], dtype=np.float32)
    assert divergences(base, mixed) == pytest.approx([math.log(5 / 3)], abs=1e-6)
    assert divergences(mixed, base) == pytest.approx([0.9 * math.log(1.8) + 0.1 * math.log(0.2)], abs=1e-6)


def test_divergence_of_many_rows():
    rng = np.random.default_rng(1)
    base, mixed = rng.normal(0, 3, (5, 400)).astype(np.float32), rng.normal(0, 3, (5, 400)).astype(np.float32)
    assert divergences(base, mixed) == pytest.approx([nats(*rows) for rows in zip(base, mixed, strict=True)], rel=1e-5)
    assert divergences(base, base) == (0.0,) * 5
    assert divergences(base, base + np.float32(512)) == pytest.approx([0.0] * 5, abs=1e-5)
    far = np.where(np.arange(400) == 7, 1e4, 0).astype(np.float32)[None]
    assert divergences(base[:1], far)[0] == pytest.approx(1e4, rel=0.05)


# -- forced logits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [{}, {"a": 0.5}, {"a": 1.0, "b": 0.25}])
def test_next_logits_agree_with_numpy(llm, reference, tiny_dir, scales):
    """More than one batch of them: a row shifted by one place is far outside the tolerance."""
    assert len(SAID) > 64
    ours = llm.next_logits(PROMPT, SAID, lora=scales)
    adapters = [(tiny_dir / f"{name}.gguf", scale) for name, scale in scales.items()]
    theirs = reference.logits([*PROMPT, *SAID], adapters)[len(PROMPT) - 1 :]
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-3
    assert np.abs(ours[1:] - theirs[:-1]).max() > 0.1


def test_a_scale_function_acts_step_by_step(llm, reference, tiny_adapter_a):
    def fade(step):
        return max(0.0, 1 - step / 8)

    ours = llm.next_logits(PROMPT, SAID, lora={"a": fade})
    scales = [1.0] * len(PROMPT) + [fade(step) for step in range(1, len(SAID) + 1)]
    theirs = reference.logits([*PROMPT, *SAID], [(tiny_adapter_a, scales)])[len(PROMPT) - 1 :]
    assert np.abs(ours - theirs).max() < 1e-3


@pytest.mark.parametrize("place", ["in the prompt", "nowhere", "in the answer"])
def test_an_activated_adapter_acts_as_in_a_generation(llm, place):
    invocation = next(a for a in llm.lora_adapters if a.name == "alora").info.invocation_tokens
    prompt = llm.detokenize([*PROMPT[1:], *(invocation if place == "in the prompt" else ()), *SAID[:3]])
    tokens = llm.tokenize(prompt)
    made = llm.complete(prompt, lora={"alora": 1.0}, logprobs=llm.next_logits(tokens).shape[1], **GREEDY)
    expected = np.array([[lp for _, _, lp in sorted(step.top)] for step in made.logprobs])
    logits = llm.next_logits(tokens, made.tokens[:-1], lora={"alora": 1.0})
    assert np.abs(np.array([log_softmax(row) for row in logits]) - expected).max() < 1e-4
    said = list(invocation) if place == "in the answer" else SAID
    same = np.array_equal(llm.next_logits(tokens, said, lora={"alora": 1.0}), llm.next_logits(tokens, said, lora={}))
    assert same == (place != "in the prompt")


def test_next_logits_take_the_active_set_and_leave_generations_as_they_were(llm):
    cold = llm.complete("Once upon", lora={"a": 0.5}, **GREEDY)
    with llm.using({"a": 0.5}):
        active = llm.next_logits(PROMPT, SAID)
        assert np.array_equal(active, llm.next_logits(PROMPT, SAID, lora={"a": 0.5}))
    assert not np.array_equal(active, llm.next_logits(PROMPT, SAID))
    llm.next_logits(llm.tokenize("Once upon"), cold.tokens, lora={"a": 0.5})
    assert llm.complete("Once upon", lora={"a": 0.5}, **GREEDY).tokens == cold.tokens


def test_next_logits_refuse_what_does_not_fit(llm):
    with pytest.raises(ContextOverflowError, match="the prompt has 0 tokens"):
        llm.next_logits([])
    with pytest.raises(ContextOverflowError, match="its continuation 300, .* holds 256"):
        llm.next_logits(PROMPT, [FIRST_BYTE] * 300)
    for token in (-1, 317, True, "a"):
        with pytest.raises(ValueError, match="a token=.* from 0 to 316"):
            llm.next_logits(PROMPT, [token])


def test_next_logits_that_overflow_are_an_error(tiny_model, tiny_adapter_a):
    with Llamafu(tiny_model, n_ctx=256, n_threads=1, scale_range=(0, 1e38)) as wide:
        wide.load_lora_adapter(tiny_adapter_a)
        with pytest.raises(DecodeError, match="logits are not finite at place 0 of the continuation"):
            wide.next_logits(PROMPT, SAID, lora={"a": 1e38})


# -- which mixes -----------------------------------------------------------------------------------------------------


def test_mixes():
    assert mixes(["a", "b"], [0, 0.5, 1, 0.5]) == [{"a": 0.5}, {"a": 1}, {"b": 0.5}, {"b": 1}]
    assert mixes(["a", "b"], [0, 1], grid=True) == [{"b": 1}, {"a": 1}, {"a": 1, "b": 1}]
    assert mixes(["a"], []) == []
    with pytest.raises(ValueError, match="a grid of 3 scales for 20 adapters has 3486784401 mixes"):
        mixes([f"a{i}" for i in range(20)], [0, 0.5, 1], grid=True)
    assert label({}) == "base"
    assert label({"a": 0.5, "b": 1.0}) == "a 0.5 + b 1"


# -- a run -----------------------------------------------------------------------------------------------------------


def test_a_sweep_agrees_with_numpy(llm, reference, tiny_dir):
    """Each answer is the call's own; each KL is what the reference computes over the base's tokens, with scale 0 exactly 0."""
    wanted = [{"a": 0.0}, {"a": 0.5}, {"a": 1.0, "b": 0.5}]
    seen = []
    found = sweep(llm, ["Once upon", "naïve?"], wanted, max_tokens=12, watch=lambda *numbers: seen.append(numbers))
    assert seen == [(i, 8) for i in range(8)]
    assert found.mixes == ({}, *wanted)
    assert [answer.mix for answer in found.answers] == [{}, *wanted] * 2
    for index, prompt in enumerate(found.prompts):
        base = llm.complete(prompt, lora={}, **GREEDY)
        assert found.places[index] == tuple(llm.detokenize([token], special=True) for token in base.tokens)
        tokens = [*llm.tokenize(prompt), *base.tokens[:-1]]
        rows = reference.logits(tokens)[-len(base.tokens) :]
        for answer in found.to(index):
            made = llm.complete(prompt, lora=answer.mix, **GREEDY)
            assert (answer.prompt, answer.text, answer.tokens) == (prompt, made.text, made.tokens)
            assert answer.tokens_per_second > 0
            adapters = [(tiny_dir / f"{name}.gguf", scale) for name, scale in answer.mix.items()]
            expected = [nats(*pair) for pair in zip(rows, reference.logits(tokens, adapters)[-len(rows) :], strict=True)]
            assert answer.kls == pytest.approx(expected, abs=1e-5)
            assert answer.kl == answer.kls[0]
            assert answer.mean_kl == pytest.approx(np.mean(expected), abs=1e-5)
        assert [answer.mean_kl for answer in found.to(index)][:2] == [0.0, 0.0]
        assert set(found.to(index)[1].kls) == {0.0}
        assert found.to(index)[2].mean_kl > 1e-3
    assert found.mean_kl(3) == pytest.approx(np.mean([*found.to(0)[3].kls, *found.to(1)[3].kls]))


def test_a_sweep_says_what_made_it(llm, tiny_adapter_b):
    b = next(adapter for adapter in llm.lora_adapters if adapter.name == "b")
    with llm.using({"a": 1.0}):
        found = sweep(llm, ["Hi"], [{b: 1.0}, {"b": 1.0}, {}], chat=True, max_tokens=4, temperature=1.0, seed=5)
        assert llm.active_lora_adapters == {"a": 1.0}
    digest = hashlib.sha256(tiny_adapter_b.read_bytes()).hexdigest()
    assert found.adapters == (SweptAdapter("b", digest, "b.gguf"),)
    assert found.mixes == ({}, {"b": 1.0})
    assert (found.model, found.chat, found.max_tokens, found.temperature, found.seed) == ("tiny.gguf", True, 4, 1.0, 5)
    message = [{"role": "user", "content": "Hi"}]
    expected = [llm.chat(message, lora=mix, max_tokens=4, temperature=1.0, seed=5).tokens for mix in found.mixes]
    assert [answer.tokens for answer in found.answers] == expected
    logits = [llm.next_logits(llm.tokenize_chat(message), lora=mix)[0] for mix in found.mixes]
    assert found.answers[1].kl == pytest.approx(nats(*np.float64(logits)), rel=1e-4)


def test_an_answer_that_ends_at_once_has_one_place(llm, monkeypatch):
    whole = llm.complete

    def silent(prompt, **options):
        return dataclasses.replace(whole(prompt, **options), text="", tokens=(), finish_reason="stop")

    monkeypatch.setattr(llm, "complete", silent)
    found = sweep(llm, ["Once"], [{"a": 1.0}])
    assert found.places == (("",),)
    assert [len(answer.kls) for answer in found.answers] == [1, 1]
    assert found.answers[1].kl == found.answers[1].mean_kl > 0
    assert "(nothing)" in page(found)
    assert "(nothing)" in sweep_table.table(found, io.StringIO())


def test_what_is_wrong_is_said_before_the_first_answer(llm, monkeypatch):
    monkeypatch.setattr(llm, "complete", None)
    for prompts in ([], [""], ["x", 3], "x"):
        with pytest.raises(ValueError, match="is not a list of one prompt or more"):
            sweep(llm, prompts, [{"a": 1.0}])
    with pytest.raises(LoraNotFoundError, match="'parrot'"):
        sweep(llm, ["x"], [{"a": 1.0}, {"parrot": 1.0}])
    with pytest.raises(InvalidScaleError, match=r"1\.5"):
        sweep(llm, ["x"], [{"a": 1.5}])
    with pytest.raises(
        ValueError, match=r"1200 answers are too many \(prompts: 600, mixes with the base: 2\); .* at most 1000"
    ):
        sweep(llm, ["x"] * 600, [{"a": 1.0}])


# -- the page and the table ------------------------------------------------------------------------------------------

EVIL = "<script>alert('&\"')</script>"


def example(text=EVIL, *, tokens=3):
    """A sweep with markup in every text."""
    kls = tuple(0.25 * i for i in range(tokens))
    base = Answer(text, {}, text, (1, 2, 3), "length", 0.0, 0.0, (0.0,) * tokens, 10.0)
    mixed = Answer(text, {text: 0.5}, text, (1,), "stop", 1.5, sum(kls) / tokens, kls, None)
    return Sweep(
        model=text,
        library=text,
        adapters=(SweptAdapter(text, "0" * 64, text),),
        chat=True,
        max_tokens=3,
        temperature=0.0,
        seed=0,
        prompts=(text, text),
        mixes=({}, {text: 0.5}),
        places=((text,) * tokens,) * 2,
        answers=(base, mixed) * 2,
    )


class Reader(HTMLParser):
    """Notes elements and text, and insists that every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_one_sound_file_and_escapes_everything():
    html = page(example())
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    assert set(reader.elements) <= set(
        "html head meta title style body h1 h2 dl dt dd code table thead tbody tr th td span b i svg rect footer".split()
    )
    names = {name for name, _ in reader.attributes}
    assert not any(name.startswith("on") for name in names)
    assert not names & {"src", "href", "srcset", "action", "xlink:href"}
    assert not re.search(r"url\(|@import|https?:", html)
    assert html.count(EVIL) == 0
    shown = 4 + 4 + 1 + 2 * 4  # twice in title and heading; facts; overview; a prompt, its mix and its answers, twice
    assert "".join(reader.text).count(EVIL) == shown
    assert html.count("&lt;script&gt;") == shown + 2 * 2 * 3  # and once for each bar of each curve
    assert "prefers-color-scheme: dark" in html
    assert "0" * 64 in html
    assert "width:100.0%" in html


def test_page_keeps_its_curve_narrow():
    reader = Reader()
    reader.feed(page(example("x", tokens=1000)))
    assert reader.elements.count("rect") == 4 * 91
    assert "249.750 nats" in "".join(reader.text)


@pytest.mark.parametrize("width", [30, 44, 80, 200])
def test_table_fits_the_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for text in (EVIL, "word " * 300, "x" * 700, "大海" * 200, "a\x1b[31m\x07\u202eb\n\tc", "e\u0301" * 300):
        shown = sweep_table.table(example(text, tokens=40), io.StringIO())
        assert max(map(sweep_table.columns, shown.splitlines())) <= width
        assert all(line.isprintable() for line in shown.splitlines())
        assert "…" in shown


def test_table_shows_the_whole_text_where_there_is_room(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = sweep_table.table(example("Ahoy there"), io.StringIO()).splitlines()
    assert shown[:4] == [
        "Ahoy there",
        "  mix             KL first  KL mean  token by token",
        "  base               0.000    0.000  ▁▁▁",
        "    Ahoy there…",
    ]
    assert shown[4:6] == ["  Ahoy there 0.5     1.500    0.250  ▁▆█", "    Ahoy there"]


def test_curve():
    assert sweep_table.curve([0, 0.25, 1], 1, 9) == "▁▅█"
    assert sweep_table.curve([0.0, 0.0], 0.0, 9) == "▁▁"
    assert sweep_table.curve([0, 1, 0, 0, 0], 1, 2) == "█▁"


# -- the command -----------------------------------------------------------------------------------------------------


def words(tiny_model, *adapters):
    return ["sweep", "-m", str(tiny_model), "--threads", "1", *(w for a in adapters for w in ("--lora", str(a)))]


def test_command_json_is_what_the_library_finds(llm, tiny_model, tiny_adapter_a, tiny_adapter_b, tmp_path, capsys):
    asked = [*words(tiny_model, tiny_adapter_a, tiny_adapter_b), "--scales", "0,1", "--mix", "a=-0.5,b=2", "--max-tokens", "6"]
    assert main([*asked, "--prompt", "Once", "--prompt", "Hi", "--json"]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out, parse_constant=pytest.fail)
    assert report["mixes"] == [{}, {"a": 1.0}, {"b": 1.0}, {"a": -0.5, "b": 2.0}]
    assert [adapter["name"] for adapter in report["adapters"]] == ["a", "b"]
    expected = sweep(llm, ["Once", "Hi"], [{"a": 1.0}, {"b": 1.0}], max_tokens=6)
    found = [answer for answer in report["answers"] if answer["mix"] in expected.mixes]
    assert [answer["text"] for answer in found] == [answer.text for answer in expected.answers]
    assert [answer["kl"] for answer in found] == pytest.approx([answer.kl for answer in expected.answers], abs=1e-3)
    assert shown.err.startswith("8 answers (prompts: 2, mixes with the base: 4)\n")
    assert "answer 8 of 8" in shown.err

    (tmp_path / "prompts.txt").write_text("Once\n\n  \nHi\n", encoding="utf-8")
    assert main([*asked, "--prompts", str(tmp_path / "prompts.txt"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    for answer in report["answers"] + again["answers"]:
        del answer["tokens_per_second"]
    assert again == report


def test_command_writes_a_page_and_a_table(tiny_model, tiny_adapter_a, tiny_adapter_b, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    output = tmp_path / "page.html"
    asked = [*words(tiny_model, tiny_adapter_a, tiny_adapter_b), "--scales", "0,1", "--grid", "--max-tokens", "4"]
    assert main([*asked, "-o", str(output)]) == 0
    shown = capsys.readouterr().out
    assert [line.split("  ")[1] for line in shown.splitlines() if " 0." in line or " 1." in line] == [
        "base",
        "b 1",
        "a 1",
        "a 1 + b 1",
    ]
    assert shown.startswith("Tell me about the sea.\n")
    assert f"{output}: the same as a page" in shown
    html = output.read_text("utf-8")
    assert "as a chat message" in html
    assert hashlib.sha256(tiny_adapter_a.read_bytes()).hexdigest() in html
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--scales", "0,much"], "'much' is not a finite number"),
        (["--scales", "nan"], "'nan' is not a finite number"),
        (["--scales", ""], "'' is not a finite number"),
        (["--lora", "other/a.gguf"], "two adapters are called 'a'"),
        (["--lora", "b.gguf=0.5"], "'b.gguf=0.5': a sweep has its scales from --scales and --mix; give b.gguf"),
        (["--mix", "a"], "'a' in 'a' is not NAME=SCALE"),
        (["--mix", "a=1,a=2"], "'a=2' in 'a=1,a=2' is not NAME=SCALE with a name of its own"),
        (["--mix", "parrot=1"], "no adapter is called 'parrot' (there are: a)"),
        (["--mix", "a=1", "--grid"], "--grid combines the scales of --scales"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "x", "--prompts", "y"], "not allowed with"),
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--max-tokens", "0"], "max_tokens=0"),
        (["--seed", str(2**64)], f"seed={2**64}"),
        (["-o", "page.gguf"], "'page.gguf' does not end in .html"),
        (
            ["--scales", ",".join(map(str, range(MOST_ANSWERS + 1)))],
            "1001 answers are too many (prompts: 1, mixes with the base: 1001)",
        ),
    ],
)
def test_usage_errors_come_before_anything_is_loaded(more, part, capsys):
    assert main(["sweep", "-m", "no-such.gguf", "--lora", "a.gguf", *more]) == 2
    shown = capsys.readouterr()
    assert part in shown.err
    assert shown.out == ""


def test_a_link_to_a_folder_is_swept_under_the_folders_name(tiny_model, tmp_path, capsys):
    """The options take the name that was given, the result says the adapter's own."""
    write_folder(tmp_path / "folder", arrays_of())
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    asked = [*words(tiny_model, tmp_path / "link"), "--scales", "1", "--mix", "link=0.5", "--prompt", "Hi", "--max-tokens", "2"]
    assert main([*asked, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mixes"] == [{}, {"folder": 1.0}, {"folder": 0.5}]
    assert [answer["mean_kl"] > 0 for answer in report["answers"]] == [False, True, True]


def test_failures_leave_no_page(tiny_model, tiny_adapter_a, tmp_path, capsys):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny_adapter_a.read_bytes())
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe4\n")
    output = tmp_path / "page.html"
    output.write_text("of before")
    itself = ["--prompts", str(output), "-o", str(output), "--force"]
    for asked, status, part in [
        ([*words(tiny_model, tiny_adapter_a), "-o", str(output)], 1, "page.html exists and is not replaced"),
        ([*words(tiny_model, tiny_adapter_a), *itself], 2, "one of the files that are read"),
        ([*words(tiny_model, tmp_path / "no.gguf"), "-o", str(output), "--force"], 1, "no such adapter file"),
        ([*words(tiny_model, tiny_adapter_a, copy), "-o", str(output), "--force"], 1, "was given twice"),
        ([*words(tiny_model, tiny_adapter_a), "-o", str(tmp_path / "no" / "page.html")], 1, "there is no folder"),
        ([*words(tiny_model, tiny_adapter_a), "--prompts", str(tmp_path / "no.txt")], 1, "no.txt"),
        ([*words(tiny_model, tiny_adapter_a), "--prompts", str(tmp_path / "empty.txt")], 2, "has no prompt in it"),
        ([*words(tiny_model, tiny_adapter_a), "--prompts", str(tmp_path / "latin.txt")], 2, "is no UTF-8 text"),
        (
            [*words(tiny_model, tiny_adapter_a), "--n-ctx", "16", "--prompt", "long " * 300, "-o", str(output), "--force"],
            1,
            "n_ctx",
        ),
    ]:
        assert main(asked) == status, part
        shown = capsys.readouterr()
        assert part in shown.err
        assert shown.out == ""
    assert output.read_text() == "of before"
    assert {path.name for path in tmp_path.iterdir()} == {"copy.gguf", "empty.txt", "latin.txt", "page.html"}
