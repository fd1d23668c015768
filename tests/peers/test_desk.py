"""The mixing desk in headless Chromium, over a real server with the example model and its two adapters."""

import json
import re
import shutil

import httpx
import pytest
from helpers.chromium import CONTROL, FOUND, chromium
from helpers.media_made import data_url, picture, png
from helpers.served import ADMIN, API, served, wait_for

from llamafu.adapters import adapter_norms, inspect_adapter
from llamafu.examples.adapters import example_adapters
from llamafu.examples.model import example_model

pytestmark = pytest.mark.skipif(FOUND is None, reason="needs Chromium")

PIRATE = example_adapters()["pirate"]
BASE_NAME, MARKUP = b"SmolLM2 135M Instruct", b"<img src=x onerror=a>"  # as long as each other: nothing in the file moves
STRIPS = "document.querySelectorAll('.mix:nth-child(2) .strip').length"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for path in example_adapters().values():
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with served(example_model(), "--adapters", folder) as running:
        assert running.url, running.log
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as new_page:
        yield new_page


@pytest.fixture
def visit(server, browser):
    """A page at the gate. After the test: it threw nothing, and spoke to this server alone."""
    page = browser()
    page.look(1200, 900, "light")
    page.open(server.url)
    page.wait("!document.querySelector('#gate').hidden")
    yield page
    page.run("localStorage.clear()")
    refused = "Failed to load resource: the server responded with a status of 4"
    assert [error for error in page.errors if refused not in error] == []
    assert page.asked
    assert [address for address in page.asked if not address.startswith(f"{server.url}/")] == []
    page.close()
    httpx.post(f"{server.url}/v1/lora/unload", headers={"X-Admin-Key": ADMIN})


@pytest.fixture
def page(visit):
    """A page behind the gate, with an admin key and its two mixes."""
    enter(visit, ADMIN)
    visit.wait(f"{STRIPS} === 2")
    return visit


def enter(page, key):
    page.focus("#key")
    page.run("document.querySelector('#key').value = ''")
    page.type(key)
    page.key("Enter")


def ask(page):
    """Let the mixes answer, and return the bodies of the requests."""
    page.bodies.clear()
    page.click("#go")
    page.wait("document.querySelector('#stop').disabled")
    return [json.loads(body) for address, body in page.bodies if address.endswith("/v1/chat/completions")]


def metric(server, name):
    text = httpx.get(f"{server.url}/metrics", headers={"X-Api-Key": API}).text
    found = re.search(rf"^llamafu_engine_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_the_gate(visit):
    assert visit.run("document.activeElement.id") == "key"
    enter(visit, "wrong-key")
    visit.wait("document.querySelector('#refused').textContent")
    assert visit.text("#refused").startswith("This key is not known here.")
    assert visit.run("document.querySelector('#desk').hidden")
    enter(visit, API)
    visit.wait("!document.querySelector('#desk').hidden")
    assert "api key" in visit.text("#state")
    assert visit.run(
        "document.querySelector('#admin').hidden && [...document.querySelectorAll('.load')].every(each => each.hidden)"
    )
    visit.click("#leave")
    assert visit.run("sessionStorage.getItem('key')") is None
    enter(visit, ADMIN)
    visit.wait("!document.querySelector('#admin').hidden")
    visit.wait("!document.querySelector('.mix:nth-child(2) .load').hidden")


def test_faders_by_mouse_and_keyboard_change_what_is_sent(page):
    page.run("document.querySelector('#length').value = 1")
    assert [body["lora"] for body in ask(page)] == [{}, {"pirate": 1}]
    first = ".mix:nth-child(1) .strip:nth-child(2) input"
    page.click(first, down=0.5)
    assert page.text(".mix:nth-child(1) h2") == "shout 0.50"
    page.focus(".mix:nth-child(2) .strip:nth-child(1) input")
    page.key("ArrowDown")
    assert page.text(".mix:nth-child(2) h2") == "pirate 0.95"
    page.key("ArrowRight")
    page.key("ArrowLeft")
    page.key("ArrowLeft")
    assert page.text(".mix:nth-child(2) output") == "0.90"
    assert [body["lora"] for body in ask(page)] == [{"shout": 0.5}, {"pirate": 0.9}]
    page.focus(first)
    page.key("End")
    assert page.run("document.activeElement.value") == "1"
    page.key("Home")
    assert [body["lora"] for body in ask(page)] == [{}, {"pirate": 0.9}]


def test_mute_and_solo(page):
    page.run("document.querySelector('#length').value = 1")
    for number in (1, 2):
        page.focus(f".mix:nth-child(2) .strip:nth-child({number}) input")
        page.key("End")
    assert ask(page)[1]["lora"] == {"pirate": 1, "shout": 1}
    page.click(".mix:nth-child(2) .strip:nth-child(1) .mute")
    assert page.run("document.querySelector('.mix:nth-child(2) .mute').getAttribute('aria-pressed')") == "true"
    assert ask(page)[1]["lora"] == {"shout": 1}
    page.click(".mix:nth-child(2) .strip:nth-child(1) .solo")
    assert ask(page)[1]["lora"] == {"pirate": 1}
    page.click(".mix:nth-child(2) .strip:nth-child(1) .solo")
    page.click(".mix:nth-child(2) .strip:nth-child(1) .mute")
    assert ask(page)[1]["lora"] == {"pirate": 1, "shout": 1}


def test_mixes_answer_at_once_in_one_batch(page, server):
    page.click("#more")
    assert page.texts(".mix h2") == ["base model", "pirate 1.00", "pirate 0.50 + shout 0.50"]
    alone, pairs, triples = (metric(server, f'batch_sizes{{key="{count}"}}') for count in (1, 2, 3))
    page.focus("#prompt")
    page.key("Enter", CONTROL)
    page.wait("document.querySelectorAll('.live').length === 3")
    page.wait("document.querySelector('#stop').disabled")
    base, pirate, _ = page.texts(".text")
    assert base == "The capital of Germany is Berlin."
    assert pirate.startswith("Arrr")
    said = page.texts(".made")
    assert all(re.match(r"[\d.]+ tokens/s · \d+ tokens · ", line) for line in said)
    assert said[2].endswith(" · pirate 0.50 · shout 0.50")
    assert re.fullmatch(r"[\d.]+ tokens/s together", page.text("#rate"))
    assert metric(server, 'batch_sizes{key="3"}') >= triples + 5  # the base's answer has seven tokens
    assert metric(server, 'batch_sizes{key="2"}') > pairs
    assert metric(server, 'batch_sizes{key="1"}') >= alone


def test_stop(page, server):
    before = metric(server, "cancelled")
    page.run("document.querySelector('#prompt').value = 'Tell me a long story about the sea.'")
    page.run("document.querySelector('#length').value = 1000")
    page.focus("#prompt")
    page.key("Enter", CONTROL)
    page.wait("[...document.querySelectorAll('.text')].every(each => each.textContent.length > 20)")
    page.key("Escape")
    page.wait("document.querySelector('#stop').disabled && !document.querySelector('#go').disabled")
    assert all(" · stopped" in line for line in page.texts(".made"))
    assert wait_for(lambda: metric(server, "running") == 0)
    assert metric(server, "cancelled") == before + 2


def test_an_answer_that_is_refused_says_why(page):
    page.run("document.querySelector('#prompt').value = 'word '.repeat(9000)")
    ask(page)
    told = page.texts(".answer.failed .bad")
    assert len(told) == 2
    assert all(text.startswith("the prompt has 90") and "8192" in text for text in told)


def test_load_for_everybody_and_unload(page, server):
    page.click(".mix:nth-child(2) .load")
    page.wait("document.querySelector('#active').textContent === 'pirate 1.00'")
    assert httpx.get(f"{server.url}/v1/lora", headers={"X-Api-Key": API}).json()["data"][0]["scaling"] == 1.0
    page.click("#unload")
    page.wait("document.querySelector('#active').textContent === 'none: the base model'")


def test_adapters_are_dropped_in_and_deleted(page, folder, tmp_path):
    sound, broken = tmp_path / "second mate.gguf", tmp_path / "broken.gguf"
    shutil.copy(PIRATE, sound)
    broken.write_bytes(PIRATE.read_bytes()[:5000])
    page.drop(sound, broken, steps=("dragEnter",))
    page.wait("!document.querySelector('#veil').hidden")
    assert page.text("#veil") == "Drop adapters to add them, and pictures to ask about them"
    page.drop(sound, broken, steps=("dragOver", "drop"))
    page.wait("document.querySelectorAll('#uploads .good, #uploads .bad').length === 2")
    good, bad = page.texts("#uploads .said")
    assert good == "added"
    assert "broken.gguf" in bad
    assert page.run("document.querySelector('#veil').hidden")
    assert sorted(path.name for path in folder.iterdir()) == ["pirate.gguf", "second mate.gguf", "shout.gguf"]
    page.wait(f"{STRIPS} === 3")
    page.drop(sound)
    page.wait("document.querySelectorAll('#uploads .bad').length === 2")
    assert "there is an adapter 'second mate' already" in page.texts("#uploads .said")[2]
    page.click(".mix:nth-child(2) .strip:nth-child(3) .name")
    page.wait("document.querySelectorAll('.cell').length === 120")
    assert page.text("#info-name") == "second mate"
    page.click("#info .danger")
    assert (folder / "second mate.gguf").exists()
    page.click("#info .danger")
    page.wait(f"{STRIPS} === 2")
    assert not (folder / "second mate.gguf").exists()
    assert not page.run("document.querySelector('#info').open")


def test_a_dropped_picture_goes_with_the_question(page, folder, tmp_path):
    """Here to a model without a projector, which says so."""
    (tmp_path / "dot.png").write_bytes(png(picture(8, 8)))
    page.drop(tmp_path / "dot.png")
    page.wait("document.querySelectorAll('#media li').length === 1")
    assert "dot.png" in page.text("#media")
    bodies = ask(page)
    parts = bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "text"]
    assert parts[0]["image_url"]["url"] == data_url(png(picture(8, 8)))
    assert "opened without a projector" in page.texts(".mix .bad")[0]
    assert not list(folder.glob("dot*"))
    page.click("#media button")
    assert page.run("document.querySelector('#media').hidden")
    assert isinstance(ask(page)[0]["messages"][0]["content"], str)


def test_an_upload_is_cancelled(page, folder, tmp_path):
    """One on its way and one that waits for it; the third, behind them, is taken."""
    first, second, third = (tmp_path / f"{name}.gguf" for name in ("first", "second", "third"))
    first.write_bytes(bytes(8_000_000))
    for path in (second, third):
        shutil.copy(PIRATE, path)
    page.slow_down(400_000)
    page.drop(first, second, third)
    page.wait("parseInt(document.querySelector('#uploads .said').textContent) > 1")
    assert page.texts("#uploads .said")[1:] == ["waits", "waits"]
    assert 0 < page.run("document.querySelector('#uploads progress').value") < 1
    page.click("#uploads li:nth-child(2) button")
    assert page.texts("#uploads b") == ["first.gguf", "third.gguf"]
    page.click("#uploads li:nth-child(1) button")
    assert page.texts("#uploads .said")[0] == "cancelled"
    page.slow_down(-1)
    page.wait("document.querySelector('#uploads .good')")
    assert page.texts("#uploads .said") == ["cancelled", "added"]
    page.wait(f"{STRIPS} === 3")
    assert sorted(path.name for path in folder.iterdir()) == ["pirate.gguf", "shout.gguf", "third.gguf"]
    page.click("#uploads li:nth-child(1) button")
    assert page.texts("#uploads b") == ["third.gguf"]
    (folder / "third.gguf").unlink()
    page.wait(f"{STRIPS} === 2")


def test_an_upload_that_is_too_large_says_so(browser, folder, tmp_path):
    (tmp_path / "large.gguf").write_bytes(bytes(30_000_000))
    with served(example_model(), "--adapters", folder, "--max-upload", 1_000_000) as server:
        page = browser()
        page.open(server.url)
        page.wait("!document.querySelector('#gate').hidden")
        enter(page, ADMIN)
        page.wait(f"{STRIPS} === 2")
        page.drop(tmp_path / "large.gguf")
        page.wait("document.querySelector('#uploads .bad')")
        assert "the upload has more than 1065536 bytes, which is the limit here" in page.texts("#uploads .said")[0]
        page.close()


def test_a_server_that_is_gone_and_comes_back(browser, folder, tmp_path):
    """Killed in the middle of two streams and an upload: each says so and keeps what it has, and the desk goes on later."""
    (tmp_path / "fourth.gguf").write_bytes(bytes(40_000_000))  # takes 100 s
    page = browser()
    with served(example_model(), "--adapters", folder) as server:
        page.open(server.url)
        page.wait("!document.querySelector('#gate').hidden")
        enter(page, ADMIN)
        page.wait(f"{STRIPS} === 2")
        page.run("document.querySelector('#prompt').value = 'Tell me a long story about the sea.'")
        page.run("document.querySelector('#length').value = 3000")
        page.slow_down(400_000)
        page.drop(tmp_path / "fourth.gguf")
        page.wait("document.querySelector('#uploads progress').value > 0")
        page.click("#go")
        page.wait("[...document.querySelectorAll('.text')].every(each => each.textContent.length > 20)")
        server.process.kill()
        server.process.wait()
    page.wait("document.querySelector('#stop').disabled && !document.querySelector('#go').disabled")
    page.wait("document.querySelector('#uploads .bad')")
    told = page.texts(".answer.failed .bad")
    assert len(told) == 2
    assert all(text.startswith("The stream broke: ") for text in told)
    assert all(len(text) > 20 + len("The stream broke: ") for text in page.texts(".text"))
    assert page.text("#uploads .said") == "could not be sent: the connection broke, or the file cannot be read"
    page.wait("!document.querySelector('#problem').hidden")
    assert page.text("#problem") == "The server does not answer. The desk goes on when it is back."
    page.slow_down(-1)
    shutil.copy(PIRATE, tmp_path / "fourth.gguf")
    try:
        with served(example_model(), "--adapters", folder, "--port", httpx.URL(server.url).port) as again:
            assert again.url == server.url, again.log
            page.wait("document.querySelector('#problem').hidden")
            page.drop(tmp_path / "fourth.gguf")
            page.wait("document.querySelector('#uploads .good')")
            page.run("document.querySelector('#length').value = 2")
            assert len(ask(page)) == 2
            assert page.texts(".failed") == []
    finally:
        (folder / "fourth.gguf").unlink(missing_ok=True)
        page.close()
    assert sorted(path.name for path in folder.iterdir()) == ["pirate.gguf", "shout.gguf"]


def test_another_key_stops_what_runs(page, server):
    page.run("document.querySelector('#length').value = 1000")
    page.run("document.querySelector('#prompt').value = 'Tell me a long story about the sea.'")
    page.click("#go")
    page.wait("[...document.querySelectorAll('.text')].every(each => each.textContent.length > 20)")
    page.click("#leave")
    assert wait_for(lambda: metric(server, "running") == 0)


def test_an_active_adapter_is_not_deleted(page, folder):
    page.click(".mix:nth-child(2) .load")
    page.wait("document.querySelector('#active').textContent === 'pirate 1.00'")
    page.click(".mix:nth-child(2) .name")
    page.wait("document.querySelector('#facts code')")
    page.click("#info .danger")
    page.click("#info .danger")
    page.wait("document.querySelector('#info-problem').textContent")
    assert page.text("#info-problem") == "the adapter 'pirate' is active; unload it first"
    assert (folder / "pirate.gguf").exists()


def test_files_dropped_with_an_api_key_are_refused(visit, tmp_path, folder):
    enter(visit, API)
    visit.wait("!document.querySelector('#desk').hidden")
    shutil.copy(PIRATE, tmp_path / "mine.gguf")
    visit.drop(tmp_path / "mine.gguf", steps=("dragEnter",))
    visit.wait("!document.querySelector('#veil').hidden")
    assert visit.text("#veil") == "Drop pictures to ask about them; adding adapters takes an admin key"
    visit.drop(tmp_path / "mine.gguf", steps=("dragOver", "drop"))
    visit.wait("document.querySelector('#veil').hidden")
    assert not (folder / "mine.gguf").exists()


def test_heat_map(page):
    norms, info = adapter_norms(PIRATE), inspect_adapter(PIRATE)
    page.focus(".mix:nth-child(2) .name")
    page.key("Enter")
    page.wait("document.querySelectorAll('.cell').length > 0")
    assert page.run("document.querySelectorAll('.cell').length") == norms.frobenius.size == 120
    assert page.texts(".map .module") == list(norms.modules)
    assert page.run("new Set([...document.querySelectorAll('.cell')].map(each => each.getAttribute('fill'))).size") > 20
    facts = dict(zip(page.texts("#facts dt"), page.texts("#facts dd"), strict=True))
    assert (facts["Rank"], facts["SHA-256"], facts["Base model"]) == ("8", info.digest, BASE_NAME.decode())
    page.focus(".map svg")
    page.key("ArrowDown")
    page.key("ArrowRight")
    size, most = (float(number) for number in re.findall(r"[\d.]+(?=,|$)", page.text(".readout")))
    assert page.text(".readout").startswith(f"layer {norms.layers[1]} · {norms.modules[1]}: ")
    assert size == pytest.approx(norms.frobenius[1, 1], rel=6e-3)
    assert most == pytest.approx(norms.spectral[1, 1], rel=6e-3)
    brightest = norms.frobenius.T.argmax()
    assert page.run(f"document.querySelectorAll('.cell')[{brightest}].getAttribute('fill')") == "rgb(253 231 37)"
    page.key("Escape")
    page.wait("!document.querySelector('#info').open")
    assert page.run("document.activeElement.textContent") == "pirate"


def test_light_and_dark(page):
    back = "getComputedStyle(document.body).backgroundColor"
    assert page.run(back) == "rgb(233, 236, 240)"
    page.look(1200, 900, "dark")
    assert page.run(back) == "rgb(16, 19, 25)"
    page.click("#theme")
    assert (page.text("#theme"), page.run(back)) == ("○ Light", "rgb(233, 236, 240)")
    page.click("#theme")
    page.look(1200, 900, "light")
    assert (page.text("#theme"), page.run(back)) == ("● Dark", "rgb(16, 19, 25)")


def test_on_a_phone(visit):
    fits = "[document.documentElement.scrollWidth, innerWidth]"
    visit.look(390, 844, "light")
    assert visit.run(fits) == [390, 390]
    enter(visit, ADMIN)
    visit.wait(f"{STRIPS} === 2")
    visit.click("#more")
    ask(visit)
    assert visit.run(fits) == [390, 390]
    assert visit.run("new Set([...document.querySelectorAll('.mix')].map(each => each.getBoundingClientRect().left)).size") == 1
    touched = "[...document.querySelectorAll('button, select, .strip input, #file')].filter(each => each.offsetParent)"
    assert visit.run(f"{touched}.length") > 20
    assert visit.run(f"{touched}.filter(each => each.getBoundingClientRect().height < 40).map(each => each.outerHTML)") == []
    visit.click(".mix:nth-child(1) .strip:nth-child(1) input", across=0.5)
    assert visit.text(".mix:nth-child(1) h2") == "pirate 0.50"
    visit.click(".mix:nth-child(1) .name")
    visit.wait("document.querySelectorAll('.cell').length === 120")
    assert visit.run("document.querySelector('.map .scroll').scrollWidth <= document.querySelector('.map .scroll').clientWidth")
    assert visit.run(fits) == [390, 390]


def test_everything_is_reached_by_keyboard(page):
    page.run("document.activeElement.blur()")
    seen = {}
    for _ in range(45):
        page.key("Tab")
        named = "(node => node.getAttribute('aria-label') || node.id || node.textContent.trim())(document.activeElement)"
        seen.setdefault(page.run(named), page.run("getComputedStyle(document.activeElement).outlineStyle"))
    wanted = {"prompt", "go", "length", "heat", "leave", "file", "Colours: auto. Press for the next", "Load for everybody"}
    wanted |= {"Remove mix A", "About pirate", "Scale of pirate", "Mute shout", "Solo pirate", "Answer", "more"}
    assert wanted <= set(seen), wanted - set(seen)
    assert {name: line for name, line in seen.items() if name in wanted and line != "solid"} == {}


def test_markup_in_names_and_metadata_is_text(page, folder, tmp_path):
    content = PIRATE.read_bytes()
    assert content.count(BASE_NAME) == 1
    name = "a&amp;b 'c' #1 50%"
    (tmp_path / f"{name}.gguf").write_bytes(content.replace(BASE_NAME, MARKUP))
    evil = tmp_path / "<img src=x onerror=a>.gguf"
    evil.write_bytes(content)
    try:
        page.drop(tmp_path / f"{name}.gguf", evil)
        page.wait("document.querySelectorAll('#uploads .good, #uploads .bad').length === 2")
        assert page.texts("#uploads b") == [f"{name}.gguf", evil.name]
        assert "is no adapter's name" in page.texts("#uploads .said")[1]
        page.wait(f"{STRIPS} === 3")
        assert name in page.texts(".mix:nth-child(2) .name")
        page.run(
            f"[...document.querySelectorAll('.strip .name')].find(each => each.textContent === {json.dumps(name)}).click()"
        )
        page.wait("document.querySelectorAll('.cell').length === 120")
        assert page.texts("#facts dd")[0] == MARKUP.decode()
        assert page.run("document.querySelectorAll('img').length") == 1  # the desk's own
    finally:
        (folder / f"{name}.gguf").unlink(missing_ok=True)
    page.wait(f"{STRIPS} === 2")
