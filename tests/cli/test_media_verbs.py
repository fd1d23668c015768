"""`llamafu complete --image` and `/image` in `llamafu chat`: the library's answers, and errors of one line."""

from __future__ import annotations

import io

from helpers.media_made import picture, png

from llamafu import Llamafu
from llamafu.cli.main import main

WORDS = ["--temperature", "0", "--max-tokens", "8"]
GREEDY = {"temperature": 0, "max_tokens": 8}


def test_pictures_of_the_command_line(tiny_dir, tmp_path, capsys, monkeypatch):
    (tmp_path / "one.png").write_bytes(png(picture(seed=1)))
    (tmp_path / "text.png").write_bytes(b"no picture")
    model, mmproj = tiny_dir / "tiny.gguf", tiny_dir / "mmproj-llava.gguf"
    with Llamafu(model, mmproj_path=mmproj, n_ctx=512) as llm:
        before = llm.complete("<__media__>hello", media=[picture(seed=1)], **GREEDY).text
        within = llm.complete("a <__media__> b", media=[picture(seed=1)], **GREEDY).text
        parts = [{"type": "image", "image": picture(seed=1)}, {"type": "text", "text": "hello"}]
        chatted = llm.chat([{"role": "user", "content": parts}], **GREEDY).text
    opened = ["-m", str(model), "--mmproj", str(mmproj)]
    image = ["--image", str(tmp_path / "one.png")]
    assert main(["complete", *opened, *image, "hello", *WORDS]) == 0
    assert capsys.readouterr().out == f"{before}\n"
    assert main(["complete", *opened, *image, "a <__media__> b", *WORDS]) == 0
    assert capsys.readouterr().out == f"{within}\n"
    assert main(["complete", "-m", str(model), *image, "hello", *WORDS]) == 1
    assert "open it with mmproj_path" in capsys.readouterr().err
    lines = f"/image {tmp_path}/one.png\nhello\n/image {tmp_path}/text.png\n/image {tmp_path}/none.png\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["chat", *opened, *WORDS]) == 1
    told = capsys.readouterr()
    assert told.out == f"{chatted}\n"
    assert "one.png goes with the next message" in told.err
    assert "text.png: the data begins with" in told.err
    assert "none.png: " in told.err
