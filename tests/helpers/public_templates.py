"""Chat templates of public models: those in `tests/data/chat_templates`, and those that only llama.cpp's source tree has."""

import csv
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data" / "chat_templates"


def rows():
    """Return what is known of each template by name: model, source, licence, family, and how it takes tools and calls."""
    with (FOLDER / "sources.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def text_of(name, tree):
    """Return a template; None where it is neither here nor in `tree`, a source tree of llama.cpp, None for none."""
    folders = [FOLDER, *([tree / "models" / "templates"] if tree is not None else [])]
    path = next((path for folder in folders if (path := folder / f"{name}.jinja").exists()), None)
    return None if path is None else path.read_text("utf-8")


class Told:
    """A model as far as `render` looks at it: one with this template."""

    bos, eos, adds_bos = 0, 1, True

    def __init__(self, template):
        self.template = template

    def chat_template(self):
        return self.template

    def metadata(self, key):
        assert key == "tokenizer.chat_template.tool_use"

    def spelled(self, token):
        return ["<s>", "</s>"][token]
