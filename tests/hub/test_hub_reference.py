"""References to the hub: what is one, what it says, and that everything else is refused with one error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafu.errors import ErrorCode, HubError
from llamafu.hub.local import is_reference, local_model
from llamafu.hub.reference import HubReference


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:owner/repo", ("owner/repo", None, None, None)),
        ("hf:owner/repo:Q4_K_M", ("owner/repo", None, "Q4_K_M", None)),
        ("hf:owner/repo:UD-Q4_K_XL", ("owner/repo", None, "UD-Q4_K_XL", None)),
        ("hf:own-er/re.po_1@main:q8_0", ("own-er/re.po_1", "main", "q8_0", None)),
        ("hf:owner/repo/a.gguf", ("owner/repo", None, None, "a.gguf")),
        ("hf:owner/repo@v1.0/sub folder/a@b:c.gguf", ("owner/repo", "v1.0", None, "sub folder/a@b:c.gguf")),
        ("hf:owner/repo@refs/pr/3/a.gguf", ("owner/repo", "refs/pr/3", None, "a.gguf")),
        ("hf:owner/repo@refs%2Fpr%2F3", ("owner/repo", "refs/pr/3", None, None)),
        ("hf:owner/repo@feature%2Fx:F16", ("owner/repo", "feature/x", "F16", None)),
        ("hf:owner/repo/checkpoint-5", ("owner/repo", None, None, "checkpoint-5")),
    ],
)
def test_what_a_reference_says(text, parts):
    found = HubReference.parse(text)
    assert (found.repo, found.revision, found.quantisation, found.path) == parts
    assert HubReference.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hf:", "it is not hf:OWNER/REPO"),
        ("hf:repo", "it is not hf:OWNER/REPO"),
        ("hf:owner/", "it is not hf:OWNER/REPO"),
        ("hf:owner/repo/", "it is not hf:OWNER/REPO"),
        ("hf:owner/repo:", "it is not hf:OWNER/REPO"),
        ("hf:owner/repo@", "it is not hf:OWNER/REPO"),
        ("hf:-owner/repo", "it is not hf:OWNER/REPO"),
        ("hf:https://huggingface.co/owner/repo", "it is not hf:OWNER/REPO"),
        ("hf:owner/repo:Q4_K_M@main", "the revision stands right behind the repository"),
        ("hf:owner/repo/a.gguf@main", "the revision stands right behind the repository"),
        ("hf:owner/re--po", "-- or .. in it"),
        ("hf:owner/repo.git", "leave out .git"),
        ("hf:owner/repo@../../x", "no branch, tag or commit"),
        ("hf:owner/repo@..%2F..%2Fetc", "no branch, tag or commit"),
        ("hf:owner/repo@a..b", "no branch, tag or commit"),
        ("hf:owner/repo/../../etc/passwd", "no path in a repository"),
        ("hf:owner/repo//a.gguf", "no path in a repository"),
        ("hf:owner/repo/a\x00.gguf", "no path in a repository"),
        ("hf:owner/repo/" + "a" * 2000, "it is not hf:OWNER/REPO"),
    ],
)
def test_what_is_no_reference(text, why):
    with pytest.raises(HubError, match=why) as caught:
        HubReference.parse(text)
    assert caught.value.code is ErrorCode.INVALID_PARAM
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


_names = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,8}[A-Za-z0-9_])?", fullmatch=True).filter(
    lambda name: not ({"--", ".."} & {name[i : i + 2] for i in range(len(name))}) and not name.endswith(".git")
)
_revisions = st.lists(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_+-]{0,6}", fullmatch=True), min_size=1, max_size=3).map("/".join)
_parts = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="/\\@"), min_size=1, max_size=8)
_paths = st.lists(_parts.filter(lambda part: part not in {".", ".."}), min_size=1, max_size=3).map("/".join)


@given(_names, _names, st.none() | _revisions, st.none() | _names.map(lambda name: f"Q{name}"), _paths)
def test_every_reference_is_read_as_it_is_written(owner, name, revision, quantisation, path):
    made = HubReference(f"{owner}/{name}", revision, quantisation, path if quantisation is None else None)
    assert HubReference.parse(str(made)) == made


@given(st.text(max_size=40) | st.text("hf:owner/@%2F.Q4_-", max_size=30))
def test_any_other_text_is_one_error(text):
    try:
        found = HubReference.parse(f"hf:{text}")
    except HubError:
        pass
    else:
        assert HubReference.parse(str(found)) == found
        assert ".." not in (found.revision or "")
        assert not {"", ".", ".."} & set((found.path or "x").split("/"))


def test_the_prefix_may_be_left_out_where_nothing_else_can_be_meant():
    assert str(HubReference.with_or_without_prefix("owner/repo:F16")) == "hf:owner/repo:F16"
    assert str(HubReference.with_or_without_prefix("hf:owner/repo:F16")) == "hf:owner/repo:F16"


def test_other_paths_are_left_alone(tmp_path):
    for path in ("a.gguf", "dir/hf:x", "./hf:x", tmp_path / "hf:owner" / "repo", "HF:owner/repo"):
        assert not is_reference(path) or str(path).startswith("hf:")
    assert str(local_model("./hf:x")) == "hf:x"
    assert local_model(tmp_path / "x.gguf") == tmp_path / "x.gguf"
    assert not is_reference(tmp_path / "hf:owner" / "repo")
