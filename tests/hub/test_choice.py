"""Which files of a repository a reference means."""

import pytest

from llamafu._util.adapter_files import CONFIG, MLX_WEIGHTS, PICKLED, SAFETENSORS
from llamafu.errors import ErrorCode, HubError
from llamafu.hub.choice import choose
from llamafu.hub.reference import HubReference

QUANTS = ["m-BF16.gguf", "m-F16.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf", "m-IQ4_XS.gguf", "README.md"]
SPLIT = ["big/m-Q8_0-00001-of-00002.gguf", "big/m-Q8_0-00002-of-00002.gguf", "m-Q2_K.gguf"]
VISION = ["m-Q8_0.gguf", "mmproj-m-Q8_0.gguf", "mmproj-m-f16.gguf", "m.imatrix.gguf"]
PEFT = [CONFIG, SAFETENSORS, "tokenizer.json", "optimizer.pt"]


def chosen(kind, text, names):
    return choose(kind, HubReference.parse(f"hf:o/r{text}"), names)


@pytest.mark.parametrize(
    ("kind", "text", "names", "files"),
    [
        ("model", "", QUANTS, ["m-Q4_K_M.gguf"]),
        ("model", "", [n for n in QUANTS if "Q4_K_M" not in n], ["m-Q8_0.gguf"]),
        ("model", "", ["z.gguf", "b.gguf"], ["b.gguf"]),
        ("model", ":q4_k_m", QUANTS, ["m-Q4_K_M.gguf"]),
        ("model", ":F16", QUANTS, ["m-F16.gguf"]),
        ("model", ":BF16", QUANTS, ["m-BF16.gguf"]),
        ("model", ":IQ4_XS", QUANTS, ["m-IQ4_XS.gguf"]),
        ("model", ":Q8_0", SPLIT, SPLIT[:2]),
        ("model", "/big/m-Q8_0-00001-of-00002.gguf", SPLIT, SPLIT[:2]),
        ("model", "/config.json", ["config.json", *QUANTS], ["config.json"]),
        ("model", "", VISION, ["m-Q8_0.gguf"]),
        ("projector", "", VISION, ["mmproj-m-f16.gguf"]),
        ("projector", ":Q8_0", VISION, ["mmproj-m-Q8_0.gguf"]),
        ("adapter", "", ["pirate.gguf", "README.md"], ["pirate.gguf"]),
        ("adapter", "", ["pirate.gguf", *PEFT], ["pirate.gguf"]),
        ("adapter", "", ["a-Q8_0.gguf", "a-F16.gguf", *PEFT], [CONFIG, SAFETENSORS]),
        ("adapter", "", ["a-Q8_0.gguf", "a-F16.gguf"], ["a-F16.gguf"]),
        ("adapter", "", [*PEFT, PICKLED], [CONFIG, SAFETENSORS]),
        ("adapter", "", [CONFIG, PICKLED], [CONFIG, PICKLED]),
        ("adapter", "", [CONFIG, MLX_WEIGHTS], [CONFIG, MLX_WEIGHTS]),
        ("adapter", "/step/5", [f"step/5/{n}" for n in PEFT], [f"step/5/{CONFIG}", f"step/5/{SAFETENSORS}"]),
        ("adapter", "/a.gguf", ["a.gguf", "b.gguf"], ["a.gguf"]),
    ],
)
def test_files(kind, text, names, files):
    found = chosen(kind, text, names)
    assert list(found.files) == files
    assert found.place == (files[0].removesuffix(CONFIG).rstrip("/") if files[0].endswith(CONFIG) else files[0])


@pytest.mark.parametrize(
    ("kind", "text", "names", "told"),
    [
        (
            "model",
            ":Q4_K",
            QUANTS,
            "no model has the quantisation Q4_K .there are: BF16, F16, IQ4_XS, Q4_K_M, Q4_K_S and 1 more",
        ),
        ("model", ":Q9", ["odd.gguf"], "no model has the quantisation Q9 .there are: odd.gguf"),
        ("model", "", ["README.md"], "no .gguf file of a model is in this repository .files: README.md"),
        ("model", "", ["mmproj-f16.gguf"], "no .gguf file of a model"),
        ("projector", "", QUANTS, "no .gguf file of a projector"),
        ("model", ":Q8_0", SPLIT[:1], "is one of 2 parts, and big/m-Q8_0-00002-of-00002.gguf is not there"),
        ("model", "/x.gguf", QUANTS, "there is no file x.gguf .there are: m-BF16.gguf"),
        ("adapter", "", ["README.md"], f"no .gguf file and no {CONFIG}"),
        ("adapter", "", [CONFIG], f"beside {CONFIG} there is none of {SAFETENSORS}, {PICKLED}, {MLX_WEIGHTS}"),
        ("adapter", "/step", ["step/x.bin"], f"step is a folder without {CONFIG} .there are: step/x.bin"),
    ],
)
def test_what_is_not_there(kind, text, names, told):
    with pytest.raises(HubError, match=told) as caught:
        chosen(kind, text, names)
    assert caught.value.code is ErrorCode.FILE_NOT_FOUND
    assert str(caught.value).startswith(f"hf:o/r{text}: ")


@pytest.mark.parametrize(
    ("kind", "text", "names"),
    [
        ("model", ":Q4_K_M", ["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"]),
        ("adapter", "", ["pirate.gguf", "shout.gguf"]),
        ("adapter", "", ["pirate-F16.gguf", "shout-F16.gguf", "x.gguf"]),
    ],
)
def test_what_is_ambiguous_is_named(kind, text, names):
    with pytest.raises(HubError, match="2 files may be meant") as caught:
        chosen(kind, text, names)
    assert names[0] in str(caught.value)
    assert caught.value.code is ErrorCode.INVALID_PARAM
