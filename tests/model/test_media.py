"""Pictures and sounds in the prompts of one model, with adapters on."""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers.media_made import data_url, picture, png, tone, wav

from llamafu import Llamafu
from llamafu.errors import ContextOverflowError, ModelLoadError, MultimodalError, StateFileError

KINDS = {
    "llava": ("tiny.gguf", "a.gguf"),
    "gemma3": ("tiny.gguf", "a.gguf"),
    "qwen2vl": ("tiny-qwen2vl.gguf", "qwen2vl-a.gguf"),
    "ultravox": ("tiny.gguf", "a.gguf"),
}
PROMPT = "the <__media__> was"
GREEDY = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def seeing(kind, real, tiny_dir):
    model, adapter = KINDS[kind]
    mmproj = tiny_dir / f"mmproj-{kind}.gguf"
    with Llamafu(tiny_dir / model, mmproj_path=mmproj, n_ctx=512, n_threads=1, library=real.path) as llm:
        llm.load_lora_adapter(tiny_dir / adapter, name="a")
        yield llm


@pytest.fixture(scope="module")
def llm(real, tiny_dir):
    mmproj = tiny_dir / "mmproj-llava.gguf"
    with Llamafu(tiny_dir / "tiny.gguf", mmproj_path=mmproj, n_ctx=512, n_threads=1, library=real.path) as llm:
        yield llm


def medium(llm, seed):
    return wav(tone(1.0, 200.0 + 100 * seed)) if llm._session.encoder._projector.hears else picture(40, 24, seed)


def probabilities(llm, given, **options):
    """Log probabilities of every token after the prompt."""
    done = llm.complete(PROMPT, media=[given], max_tokens=1, temperature=0.0, ignore_eos=True, logprobs=317, **options)
    return {token: logprob for token, _, logprob in done.logprobs[0].top}


def test_other_media_and_adapters_give_other_numbers(seeing):
    first, second = medium(seeing, 1), medium(seeing, 2)
    base = probabilities(seeing, first, lora={})
    assert probabilities(seeing, second, lora={}) != base
    assert probabilities(seeing, first, lora={"a": 1.0}) != base
    assert probabilities(seeing, first, lora={"a": 0.0}) == base
    assert probabilities(seeing, first, lora={}) == base


def test_answers_are_those_of_a_cold_memory(seeing):
    """What is reused of a prompt with a medium changes nothing, also where only a part of it is."""
    given = medium(seeing, 3)
    cold = seeing.complete(PROMPT, media=[given], lora={"a": 1.0}, **GREEDY)
    assert cold.usage.prompt_tokens > 16
    seeing.complete("something else", **GREEDY)
    seeing.complete(PROMPT + " you and the other", media=[given], lora={"a": 1.0}, **GREEDY)
    warm = seeing.complete(PROMPT, media=[given], lora={"a": 1.0}, **GREEDY)
    assert warm.usage.cached_tokens > 16
    assert warm.tokens == cold.tokens
    assert "".join(seeing.stream(PROMPT, media=[given], lora={"a": 1.0}, **GREEDY)) == cold.text


def test_a_medium_is_encoded_once(llm):
    encoder = llm._session.encoder
    llm.complete(PROMPT, media=[picture(seed=10)], **GREEDY)
    before = encoder.encoded
    llm.complete("and the <__media__>", media=[picture(seed=10)], **GREEDY)
    assert encoder.encoded == before
    llm.complete("and the <__media__>", media=[picture(seed=11)], **GREEDY)
    assert encoder.encoded == before + 1


def test_ways_to_give_a_picture(llm, tmp_path):
    """They are the same pixels, so that they are the same answer."""
    pixels = picture(seed=4)
    content = png(pixels)
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    answers = {
        llm.complete(PROMPT, media=[given], **GREEDY).text
        for given in (pixels, content, bytearray(content), path, str(path), io.BytesIO(content), data_url(content))
    }
    assert len(answers) == 1
    image = pytest.importorskip("PIL.Image")
    assert llm.complete(PROMPT, media=[image.fromarray(pixels)], **GREEDY).text in answers
    webp = io.BytesIO()
    image.fromarray(pixels).save(webp, "WEBP", lossless=True)
    assert llm.complete(PROMPT, media=[webp.getvalue()], **GREEDY).text in answers


def test_parts_of_chats(llm):
    content = png(picture(seed=5))
    ways = [
        {"type": "image_url", "image_url": {"url": data_url(content)}},
        {"type": "image_url", "image_url": data_url(content)},
        {"type": "image", "image": picture(seed=5)},
        {"type": "image", "image": content},
    ]
    answers = {
        llm.chat([{"role": "user", "content": [{"type": "text", "text": "what is"}, part]}], **GREEDY).text for part in ways
    }
    assert len(answers) == 1
    rendered = "<|im_start|>user\nwhat is<__media__><|im_end|>\n<|im_start|>assistant\n"
    assert llm.complete(rendered, media=[content], **GREEDY).text in answers
    # A user's text is no marker.
    llm.chat([{"role": "user", "content": [{"type": "text", "text": "<__media__>"}, ways[0]]}], **GREEDY)


def test_several_media_stand_where_their_markers_are(llm):
    one, other = picture(seed=6), picture(seed=7)
    prompt = "<__media__> and <__media__>"
    there = llm.complete(prompt, media=[one, other], **GREEDY)
    back = llm.complete(prompt, media=[other, one], **GREEDY)
    assert there.text != back.text
    assert there.usage.prompt_tokens > 32
    assert llm.complete(prompt, media=[one, other], **GREEDY).text == there.text


def test_what_is_refused(llm, tiny_dir, real, tmp_path):
    cases = [
        ("no marker", [picture(seed=1)], "0 markers"),
        (PROMPT, [b"plain text"], r"media\[0\]: the data begins with"),
        (PROMPT, [b""], "is empty"),
        (PROMPT, [png(picture(seed=1))[:60]], "cannot be decoded"),
        (PROMPT, [wav(tone())], "this is a sound"),
        (PROMPT, ["https://example.org/a.png"], "nothing is fetched"),
        (PROMPT, [np.zeros((4, 4), np.uint8)], "shape"),
        (PROMPT, [np.zeros((1, 400, 3), np.uint8)], "longer side"),
    ]
    for prompt, media, message in cases:
        with pytest.raises(MultimodalError, match=message):
            llm.complete(prompt, media=media, **GREEDY)
    with pytest.raises(TypeError, match=r"media\[0\]: 7 is int"):
        llm.complete(PROMPT, media=[7], **GREEDY)
    with pytest.raises(FileNotFoundError):
        llm.complete(PROMPT, media=[tmp_path / "none.png"], **GREEDY)
    with pytest.raises(MultimodalError, match="parts? of the content"):
        llm.chat([{"role": "user", "content": "hi"}], media=[picture(seed=1)], **GREEDY)
    with pytest.raises(ContextOverflowError, match="of media"):
        llm.complete(" ".join(["<__media__>"] * 40), media=[picture(seed=1)] * 40, **GREEDY)
    llm.complete(PROMPT, media=[picture(seed=1)], **GREEDY)
    with pytest.raises(StateFileError, match="has media"):
        llm.save_state(tmp_path / "state")
    for path, message in (
        (tiny_dir / "tiny.gguf", "is no projector"),
        (tiny_dir / "mmproj-narrow.gguf", "mismatch"),
        (tmp_path / "none.gguf", "no such"),
    ):
        with pytest.raises(ModelLoadError, match=message):
            Llamafu(tiny_dir / "tiny.gguf", mmproj_path=path, library=real.path)


def test_a_model_without_a_projector_says_so(real, tiny_model):
    with Llamafu(tiny_model, n_ctx=64, library=real.path) as llm:
        with pytest.raises(MultimodalError, match="mmproj_path"):
            llm.complete(PROMPT, media=[picture(seed=1)])
        part = {"type": "image", "image": picture(seed=1)}
        with pytest.raises(TypeError, match="opened without a projector"):
            llm.chat([{"role": "user", "content": [part]}])


def test_rows_that_see_each_other_have_to_fit_into_one_batch(real, tiny_dir):
    mmproj = tiny_dir / "mmproj-gemma3.gguf"
    with (
        Llamafu(tiny_dir / "tiny.gguf", mmproj_path=mmproj, n_ctx=128, n_batch=3, n_threads=1, library=real.path) as llm,
        pytest.raises(ContextOverflowError, match="n_batch=4"),
    ):
        llm.complete(PROMPT, media=[picture(seed=1)])
