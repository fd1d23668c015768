"""Images and sounds of the less usual forms are the pixels and the tones that they show and play."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.forced import STRICT
from helpers.media_cases import PROMPT, say
from helpers.media_made import bmp, gif, jpeg, picture, png, tone, wav

from llamafu import Llamafu


@pytest.fixture(scope="module")
def logits(tiny_dir):
    """Return the logits after a medium, of a model that sees and hears."""
    with Llamafu(tiny_dir / "tiny.gguf", mmproj_path=tiny_dir / "mmproj-both.gguf", n_ctx=256, **STRICT) as llm:
        yield lambda medium: say(llm, PROMPT, [medium])[0]


def test_an_image_is_its_pixels_in_every_format(logits):
    pixels = picture(40, 24) // 64 * 85  # of the colours that the GIF has
    wanted = logits(pixels)
    for content in (png(pixels), bmp(pixels)):
        np.testing.assert_array_equal(logits(content), wanted)
    pytest.importorskip("PIL.Image")
    np.testing.assert_array_equal(logits(gif(pixels)), wanted)


def test_grey_and_transparent_images_have_the_colours_that_they_show(logits):
    grey = picture(32, 32)[..., 0]
    in_colours = np.stack([grey] * 3, axis=-1)
    wanted = logits(in_colours)
    np.testing.assert_array_equal(logits(png(grey)), wanted)
    with_alpha = np.concatenate([in_colours, np.full((32, 32, 1), 255, np.uint8)], axis=-1)
    np.testing.assert_array_equal(logits(png(with_alpha)), wanted)
    means = grey.reshape(4, 8, 4, 8).mean(axis=(1, 3)).round().astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    np.testing.assert_array_equal(logits(jpeg(grey)), logits(np.stack([means] * 3, axis=-1)))


def test_a_sound_is_brought_to_the_rate_and_the_channel_of_the_model(logits):
    wanted = logits(wav(tone(1.0)))
    np.testing.assert_allclose(logits(wav(tone(1.0), channels=2)), wanted, rtol=0, atol=1e-3)
    resampled = np.abs(logits(wav(tone(1.0, rate=48000), rate=48000)) - wanted).max()
    assert resampled < np.abs(logits(wav(tone(1.0, hertz=3000))) - wanted).max() / 4
