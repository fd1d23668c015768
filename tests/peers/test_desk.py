"""The mixing desk in headless Chromium: by keyboard, side by side, light, dark and on a phone."""

import shutil

import pytest
from chromium import FOUND, chromium
from served import ADMIN, served

from llamafu.example_adapters import example_adapters
from llamafu.example_model import example_model

pytestmark = pytest.mark.skipif(FOUND is None, reason="needs Chromium")


def test_two_mixes_answer_side_by_side(tmp_path):
    folder = tmp_path / "adapters"
    folder.mkdir()
    for path in example_adapters().values():
        shutil.copy(path, folder)
    with served(example_model(), "--adapters", folder) as server, chromium(tmp_path / "profile") as page:
        page.look(1200, 850, "light")
        page.open(server.url)
        page.wait("document.querySelector('#state').textContent === 'a key is needed'")
        page.run("document.querySelector('#key').focus()")
        page.type(ADMIN)
        page.key("Enter", 13, "\r")
        page.wait("document.querySelectorAll('.strip input').length === 4")
        page.errors.clear()  # the first answer, without a key, was a 401
        for scheme, width in (("light", 1200), ("dark", 1200), ("dark", 390)):
            page.look(width, 850, scheme)
            page.run("document.querySelector('#go').click()")
            page.wait("document.querySelector('#stop').disabled")
            base, pirate = page.run("[...document.querySelectorAll('.answer')].map(answer => answer.textContent)")
            assert base == "The capital of Germany is Berlin."
            assert pirate.startswith("Arrr")
            assert page.run("document.documentElement.scrollWidth <= innerWidth")
        page.run("document.querySelectorAll('.mix')[1].querySelector('.strip input').focus()")
        page.key("ArrowDown", 40)
        assert page.run("document.querySelectorAll('.mix h2')[1].textContent") == "pirate 0.95"
        page.run("[...document.querySelectorAll('.mix')[1].querySelectorAll('button')].at(0).click()")
        page.wait("document.querySelector('#active').textContent.includes('pirate 0.95')")
        assert page.errors == []
