"""`llamafu.service`: the seed's types field for field, and the service over an engine that is a few lines of Python."""

import os
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafu.errors import InvalidScaleError, LoraNotFoundError, QueueFullError
from llamafu.service import (
    InvalidRequestError,
    LocalLoraService,
    LoraCard,
    LoraList,
    LoraLoadInfo,
    LoraLoadRequest,
    LoraLoadResponse,
    LoraService,
    NotFoundError,
    ServerError,
    ServerTimeoutError,
)
from llamafu.service.errors import KINDS, as_api_error

HALF = LoraLoadRequest.of({"pirate": 0.5})


class FakeEngine:
    """What `LocalLoraService` needs, with the names and rules of the engine."""

    scale_range = (0.0, 1.0)

    def __init__(self, folder):
        self.folder = folder
        self.adapters = {}
        self.active = {}
        self.queued = []
        for name in ("shout", "pirate"):
            path = folder / f"{name}.gguf"
            path.touch()
            os.utime(path, (1_700_000_000, 1_700_000_000.9))
            self.adapters[name] = object()

    @property
    def mixes(self):
        return {}

    @property
    def active_lora_adapters(self):
        return dict(self.active)

    def adapter_path(self, name):
        if name not in self.adapters:
            raise LoraNotFoundError(name)
        return self.folder / f"{name}.gguf"

    def set_lora_adapters(self, scales, *, include_queued=False):
        for name in scales:
            if name not in self.adapters:
                message = f"no adapter {name!r}"
                raise LoraNotFoundError(message)
        self.active = dict(scales)
        self.queued.append(include_queued)


@pytest.fixture
def engine(tmp_path):
    return FakeEngine(tmp_path)


@pytest.fixture
def service(engine):
    return LocalLoraService(engine)


# -- types --------------------------------------------------------------------------------------------------------


def test_fields_are_those_of_the_seed():
    names = {kind: [field.name for field in fields(kind)] for kind in (LoraCard, LoraList, LoraLoadInfo, LoraLoadRequest)}
    assert names[LoraCard] == ["id", "object", "created", "owned_by", "scaling"]
    assert names[LoraList] == ["object", "data"]
    assert names[LoraLoadInfo] == ["name", "scaling"]
    assert names[LoraLoadRequest] == ["loras", "skip_queue"]
    assert [field.name for field in fields(LoraLoadResponse)] == ["success", "failure"]


def test_defaults():
    assert LoraCard("a") == LoraCard(id="a", object="lora", created=0, owned_by="llamafu", scaling=None)
    assert LoraList().object == "list"
    assert LoraLoadInfo("a").scaling == 1.0
    assert LoraLoadRequest([LoraLoadInfo("a")]).loras == (LoraLoadInfo("a"),)


def test_zero_survives_and_inactive_is_absent():
    assert LoraLoadInfo("a", 0).to_json() == {"name": "a", "scaling": 0}
    assert LoraLoadInfo.from_json({"name": "a", "scaling": 0}).scaling == 0.0
    assert LoraCard("a", scaling=0.0).to_json()["scaling"] == 0.0
    assert "scaling" not in LoraCard("a").to_json()
    assert LoraCard.from_json({"id": "a", "scaling": 0}).scaling == 0.0
    assert LoraCard.from_json({"id": "a", "scaling": None}).scaling is None


NAMES = st.text(min_size=1, max_size=20)
SCALES = st.floats(-10, 10)


@given(st.lists(st.tuples(NAMES, SCALES), min_size=1, max_size=5, unique_by=lambda pair: pair[0]), st.booleans())
def test_requests_survive_json(pairs, skip):
    request = LoraLoadRequest.of(dict(pairs), skip_queue=skip)
    assert LoraLoadRequest.from_json(request.to_json()) == request


@given(st.lists(st.builds(LoraCard, NAMES, created=st.integers(0, 2**40), scaling=st.none() | SCALES), max_size=4))
def test_lists_survive_json(cards):
    assert LoraList.from_json(LoraList(data=tuple(cards)).to_json()) == LoraList(data=tuple(cards))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["loras", "name", "scaling", "x"]), inner),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_read_or_refused(data):
    for kind in (LoraLoadRequest, LoraLoadResponse, LoraList, LoraCard, LoraLoadInfo):
        for problem in problems_of(kind, data):
            assert "\n" not in problem


def problems_of(kind, data):
    try:
        kind.from_json(data)
    except InvalidRequestError as error:
        return error.problems
    return ()


def test_every_problem_is_named_at_once():
    data = {"loras": [{"name": "", "scaling": "1"}, {"nmae": "b"}, 3], "skip_queue": "no", "skipqueue": True}
    with pytest.raises(InvalidRequestError) as caught:
        LoraLoadRequest.from_json(data)
    assert caught.value.problems == (
        "loras[0].name is ''; give a string that is not empty",
        "loras[0].scaling is '1'; give a finite number",
        "loras[1].name is missing; give a string that is not empty",
        "loras[1].'nmae' is not a field; did you mean 'name'? (fields: name, scaling)",
        "loras[2] is a number; give an object",
        "loras[2].name is missing; give a string that is not empty",
        "skip_queue is 'no'; give true or false",
        "'skipqueue' is not a field; did you mean 'skip_queue'? (fields: loras, skip_queue)",
    )
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("scaling", [float("nan"), float("inf"), True, "1", 10**400])
def test_a_scaling_that_is_no_finite_number_is_refused(service, engine, scaling):
    for read in (lambda: LoraLoadRequest.from_json({"loras": [{"name": "pirate", "scaling": scaling}]}),):
        with pytest.raises(InvalidRequestError, match="finite number"):
            read()
    with pytest.raises(InvalidRequestError, match="finite number"):
        service.load(LoraLoadRequest((LoraLoadInfo("pirate", scaling),)))
    assert not engine.queued


def test_answers_may_grow():
    assert LoraList.from_json({"object": "list", "data": [{"id": "a", "size": 3}], "more": 1}).data[0].id == "a"
    assert LoraLoadResponse.from_json({"success": ["a"], "failure": None, "more": 1}) == LoraLoadResponse(("a",))


# -- errors -------------------------------------------------------------------------------------------------------


def test_codes_and_statuses():
    assert {code: kind.default_status for code, kind in KINDS.items()} == {
        "invalid_request": 400,
        "context_length_exceeded": 400,
        "authentication_error": 401,
        "permission_error": 403,
        "not_found": 404,
        "rate_limit_exceeded": 429,
        "server_error": 500,
    }
    assert issubclass(ServerTimeoutError, TimeoutError)
    assert str(ServerTimeoutError("late")) == "late"


def test_the_library_s_errors_are_translated():
    assert as_api_error(QueueFullError("full")).code == "rate_limit_exceeded"
    assert as_api_error(InvalidScaleError("2")).code == "invalid_request"
    assert as_api_error(LoraNotFoundError("x")).code == "not_found"
    told = as_api_error(ZeroDivisionError("the prompt was: secret"))
    assert told.code == "server_error"
    assert "secret" not in str(told)


# -- the service in this process ----------------------------------------------------------------------------------


def test_list_has_every_adapter_and_the_active_ones_scale(service, engine):
    engine.active = {"shout": 0.0}
    pirate, shout = service.list().data
    assert pirate == LoraCard("pirate", created=1_700_000_000)
    assert shout == LoraCard("shout", created=1_700_000_000, scaling=0.0)
    assert service.get_active().data == (shout,)


def test_load_replaces_the_set(service, engine):
    assert service.load(LoraLoadRequest.of({"shout": 0.8, "pirate": 0})) == LoraLoadResponse(("shout", "pirate"))
    assert engine.active == {"shout": 0.8, "pirate": 0.0}
    assert service.load(HALF).success == ("pirate",)
    assert engine.active == {"pirate": 0.5}
    service.unload()
    assert engine.active == {}
    service.unload()


def test_some_found_are_loaded_and_both_lists_filled(service, engine):
    answer = service.load(LoraLoadRequest.of({"gone": 1, "pirate": 0.5, "lost": 0.1}))
    assert answer == LoraLoadResponse(("pirate",), ("gone", "lost"))
    assert engine.active == {"pirate": 0.5}


def test_none_found_keeps_the_old_set(service, engine):
    service.load(HALF)
    with pytest.raises(NotFoundError, match=r"no such adapter: 'gone', 'lost' \(adapters: pirate, shout\)"):
        service.load(LoraLoadRequest.of({"gone": 1, "lost": 1}))
    assert engine.active == {"pirate": 0.5}


@pytest.mark.parametrize(
    ("loras", "problem"),
    [
        ((), "loras is empty"),
        ((LoraLoadInfo("pirate", 1.5),), "from 0 to 1"),
        ((LoraLoadInfo("pirate"), LoraLoadInfo("gone", -0.1)), "'gone'"),
        ((LoraLoadInfo("pirate"), LoraLoadInfo("shout"), LoraLoadInfo("pirate", 0.5)), "names 'pirate' 2 times"),
    ],
)
def test_a_bad_request_changes_nothing(service, engine, loras, problem):
    service.load(HALF)
    with pytest.raises(InvalidRequestError, match=problem):
        service.load(LoraLoadRequest(loras))
    assert engine.active == {"pirate": 0.5}


def test_an_adapter_that_vanishes_in_between_is_not_found(service, engine, monkeypatch):
    monkeypatch.setattr(engine, "set_lora_adapters", lambda scales, **_: engine.adapter_path("gone"))
    with pytest.raises(NotFoundError):
        service.load(HALF)


def test_skip_queue_reaches_the_engine(service, engine):
    service.load(LoraLoadRequest.of({"pirate": 1}, skip_queue=True))
    service.load(HALF)
    assert engine.queued == [True, False]


def test_a_deleted_file_has_no_date(service, engine):
    (engine.folder / "pirate.gguf").unlink()
    assert service.list().data[0].created == 0


# -- scopes -------------------------------------------------------------------------------------------------------


def test_using_restores_the_set(service, engine):
    service.load(LoraLoadRequest.of({"shout": 0.0}))
    with service.using(HALF) as answer:
        assert answer.success == ("pirate",)
        assert engine.active == {"pirate": 0.5}
    assert engine.active == {"shout": 0.0}


def test_using_restores_the_set_after_an_error(service, engine):
    with pytest.raises(ZeroDivisionError), service.using(HALF):
        _ = 1 / 0
    assert engine.active == {}


def test_using_leaves_out_what_was_deleted(service, engine):
    service.load(LoraLoadRequest.of({"shout": 0.2}))
    with service.using(HALF):
        del engine.adapters["shout"]
    assert engine.active == {}


def test_using_restores_after_a_load_of_unknown_outcome(service, engine, monkeypatch):
    service.load(LoraLoadRequest.of({"shout": 0.2}))
    load, calls = service.load, []

    def late(request):
        calls.append(request)
        load(request)
        if len(calls) == 1:
            message = "late"
            raise ServerTimeoutError(message)

    monkeypatch.setattr(service, "load", late)
    with pytest.raises(ServerError, match="late"), service.using(HALF):
        pytest.fail("not entered")
    assert engine.active == {"shout": 0.2}


def test_it_is_the_interface():
    assert issubclass(LocalLoraService, LoraService)
    with pytest.raises(TypeError):
        LoraService()
