"""Draw docs/images/desk-*.png: the mixing desk in Chromium, over a real server with the example model and its adapters.

    .venv/bin/python scripts/make_desk_pictures.py

What is answered on them is what the model answered. Needs Chromium, and the extras `prebuilt` and `test`.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from llamafu.examples.adapters import example_adapters
from llamafu.examples.model import example_model

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from helpers.chromium import CONTROL, Page, chromium  # noqa: E402 - found on the path of above
from helpers.served import ADMIN, served  # noqa: E402


def main() -> None:
    """Draw all of them."""
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        folder = tmp / "adapters"
        folder.mkdir()
        for path in example_adapters().values():
            shutil.copy(path, folder)
        with served(example_model(), "--adapters", folder) as server, chromium(tmp / "profile") as new_page:
            page = new_page()
            page.look(1200, 760, "dark")
            page.open(server.url)
            page.wait("!document.querySelector('#gate').hidden")
            page.type(ADMIN)
            page.key("Enter")
            page.wait("document.querySelectorAll('.strip').length === 4")
            draw(page, tmp)


def draw(page: Page, tmp: Path) -> None:
    """Mix, ask, and take the pictures."""
    page.run("document.querySelector('#length').value = 60")
    page.click("#more")
    for mix, strip, steps in ((3, 1, 6), (3, 2, 4)):
        page.focus(f".mix:nth-child({mix}) .strip:nth-child({strip}) input")
        for _ in range(steps):
            page.key("ArrowUp")
    answer(page)
    page.look(1200, 1060, "dark")
    save(page, tmp, "desk-dark")
    page.look(1200, 1060, "light")
    save(page, tmp, "desk-light")
    page.click(".mix:nth-child(2) .name")
    page.wait("document.querySelectorAll('.cell').length > 0")
    page.focus(".map svg")
    for _ in range(26):
        page.key("ArrowRight")
    page.key("ArrowDown")
    save(page, tmp, "desk-adapter")
    page.key("Escape")
    page.look(390, 844, "dark")
    page.run("document.activeElement.blur()")
    page.run("document.querySelector('.mix:nth-child(2)').scrollIntoView()")
    save(page, tmp, "desk-phone")


def answer(page: Page) -> None:
    """Let every mix answer, to the end."""
    page.focus("#prompt")
    page.key("Enter", CONTROL)
    page.wait("!document.querySelector('#stop').disabled")
    page.wait("document.querySelector('#stop').disabled")
    page.run("document.activeElement.blur()")


def save(page: Page, tmp: Path, name: str) -> None:
    """Write one picture."""
    page.picture(tmp / "seen.png")
    target = ROOT / "docs" / "images" / f"{name}.png"
    with Image.open(tmp / "seen.png") as seen:
        seen.convert("RGB").save(target, optimize=True)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
