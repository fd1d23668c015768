"""Bounds of a chat template: one that does not end, or makes too much, is an error and nothing more."""

import time

import pytest

from llamafu.errors import ErrorCode, LlamafuError, TemplateLimitError
from llamafu.generation.jinja_template import compiled

LIMITED = {
    "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}": "ran for more than",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}": "ran for more than",
    "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}": "makes a value of",
    "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}": "makes a value of",
    "{{ 'a' * 10 ** 10 }}": "makes a value of",
    "{{ [1] * 10 ** 10 }}": "makes a value of",
    "{{ 9 ** 99999 }}": "computes a number",
    "{{ x ** x ** x }}": "computes a number",
    "{{ 'a' | center(10 ** 10) }}": "asks for a width",
    "{{ 'a'.ljust(10 ** 10) }}": "asks for a width",
    "{{ '%9999999999d' % 1 }}": "too wide a format",
    "{% for i in range(90000) %}{{ big }}{% endfor %}": "makes a value of",
}
REFUSED = {
    "{% for i in range(10 ** 9) %}{% endfor %}": "Range too big",
    "{% for i in y recursive %}{{ loop([1]) }}{% endfor %}": "RecursionError",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError",
    "{{ lipsum(10 ** 9) }}": "'lipsum' is undefined",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}": "RecursionError",
    "{% if 1 %}" * 2000 + "{% endif %}" * 2000: "RecursionError",
    "{{ 1 }": "cannot be compiled",
}


@pytest.mark.parametrize("text", [*LIMITED, *REFUSED], ids=range(len(LIMITED) + len(REFUSED)))
def test_no_template_goes_beyond_its_bounds(text, monkeypatch):
    # On a busy machine the time must not be up before what else the template does too much of.
    monkeypatch.setattr("llamafu.generation.jinja_template.SECONDS", 0.2 if LIMITED.get(text) == "ran for more than" else 60)
    began = time.process_time()
    with pytest.raises(LlamafuError) as caught:
        compiled(text)(x=99, y=[1], big="b" * 1000)
    assert {**LIMITED, **REFUSED}[text] in str(caught.value)
    assert isinstance(caught.value, TemplateLimitError) == (text in LIMITED)
    assert caught.value.code == ErrorCode.INVALID_PARAM
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 5  # as the time is up, not when the loops are through: hours


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="this system's time zone cannot be set for one process")
def test_dates_are_local_and_name_no_zone(monkeypatch):
    told = []
    try:
        for zone in ("AAA-14", "BBB12"):  # 26 hours apart
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            told.append(compiled("{{ strftime_now('%d %z') }}")())
    finally:
        monkeypatch.undo()
        time.tzset()
    assert told[0] != told[1]
    assert all(day.endswith(" ") for day in told)


def test_lists_may_grow_and_shrink_but_not_those_of_the_caller():
    messages = [{"content": "a"}, {"content": "b"}]
    told = compiled(
        "{% set ns = namespace(ids=[]) %}{% for m in messages %}{% set _ = ns.ids.append(m.content) %}{% endfor %}"
        "{{ ns.ids.pop(0) }}{{ ns.ids }}{% set _ = messages.pop() %}{{ messages | length }}"
    )(messages=messages)
    assert told == "a['b']1"
    assert len(messages) == 2
    for unsafe in ("messages.extend(messages)", "messages.clear()", "messages[0].update(x=1)"):
        with pytest.raises(LlamafuError, match="is unsafe"):
            compiled("{{ " + unsafe + " }}")(messages=messages)


def test_what_templates_do_is_within_the_bounds():
    """Thousands of messages, and every construct that is watched."""
    text = (
        "{% set n = namespace(seen=0, all='') %}"
        "{% for m in messages %}{% if loop.last %}{% set n.seen = loop.index %}{% endif %}"
        "{% set n.all = n.all ~ m.content[:1] %}{% endfor %}{{ n.seen }}{{ n.all | length }}{{ 'ab' * 2 }}{{ 2 ** 10 }}"
        "{{ 'a' | center(3) }}|{{ '%03d' % 5 }}{{ 'x' + 'y' }}{{ 2 * 3 }}"
        "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('z') }}"
        "{% for k, v in {'a': 1} | items %}{{ k ~ v }}{% endfor %}"
        "{% for c in 'ab' if c != 'a' %}{{ c }}{% else %}none{% endfor %}{% for c in [] %}{% else %}none{% endfor %}"
    )
    told = compiled(text)(messages=[{"content": "hello"}] * 5000)
    assert told == "50005000abab1024 a |005xy6zza1bnone"
