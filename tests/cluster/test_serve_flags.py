"""The flags of `llamafu serve` for replicas, where Ray is not installed, as in the environment of these tests."""

import importlib.util

import pytest

from llamafu.cli.main import main
from llamafu.server.settings import Settings


def test_replicas_need_ray(tiny_model, capsys):
    assert main(["serve", "-m", str(tiny_model), "--replicas", "2", "--no-auth"]) == 2
    assert "replicas is 2, and they run on Ray; give ray, too" in capsys.readouterr().err
    assert Settings(model="m.gguf", ray=True, replicas=2).replicas == 2


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed here")
def test_the_extra_is_named(tiny_model, capsys):
    assert main(["serve", "-m", str(tiny_model), "--ray", "--no-auth"]) == 1
    said = capsys.readouterr().err
    assert "serving on Ray needs ray[serve]; install the extra: pip install 'llamafu[ray]'" in said
