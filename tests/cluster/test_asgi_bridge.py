"""Requests that were taken elsewhere, answered by an application of this process; metrics of several replicas."""

import asyncio

from llamafu.ray.asgi_bridge import AnswerHead, ForwardedRequest, answer
from llamafu.ray.merged_metrics import merged


def forwarded(body=()):
    return ForwardedRequest("POST", "/x", b"/x", b"a=1", ((b"host", b"h"),), ("c", 1), ("s", 2), "http", tuple(body))


async def loaded(piece):
    return piece


def ask(app, request):
    async def run():
        return [part async for part in answer(app, request, "r0", loaded)]

    return asyncio.run(run())


def test_body_and_answer_in_pieces():
    async def app(scope, receive, send):
        assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/x", b"a=1")
        read, more = b"", True
        while more:
            message = await receive()
            read, more = read + message["body"], message["more_body"]
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x", b"y")]})
        for part in (b"<", read, b">"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    head, *parts = ask(app, forwarded([b"ab", b"cd"]))
    assert head == AnswerHead(201, ((b"x", b"y"),), "r0")
    assert b"".join(parts) == b"<abcd>"
    assert b"".join(ask(app, forwarded())[1:]) == b"<>"


def test_pieces_come_as_they_are_sent():
    async def run():
        go_on = asyncio.Event()

        async def app(_scope, _receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"1", "more_body": True})
            await go_on.wait()
            await send({"type": "http.response.body", "body": b"2"})

        parts = answer(app, forwarded(), "r0", loaded)
        await anext(parts)
        assert await anext(parts) == b"1"
        go_on.set()
        assert await anext(parts) == b"2"
        assert [part async for part in parts] == []

    asyncio.run(run())


def test_leaving_is_told_and_ends_the_application():
    ended = []

    async def run():
        async def app(_scope, receive, send):
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            assert (await receive())["type"] == "http.disconnect"
            ended.append("by itself")

        parts = answer(app, forwarded([b"x"]), "r0", loaded)
        await anext(parts)
        await parts.aclose()

    asyncio.run(run())
    assert ended == ["by itself"]


def test_metrics_of_replicas_are_one_text():
    one = '# HELP x what\n# TYPE x counter\nx{a="1"} 2\nx{a="} 5"} 3\n# TYPE y gauge\ny 4\n'
    two = '# HELP x what\n# TYPE x counter\nx{a="1"} 5\n# TYPE z gauge\nz 6\n'
    assert merged({"r0": one, "r1": two}).splitlines() == [
        "# HELP x what",
        "# TYPE x counter",
        'x{replica="r0",a="1"} 2',
        'x{replica="r0",a="} 5"} 3',
        'x{replica="r1",a="1"} 5',
        "# TYPE y gauge",
        'y{replica="r0"} 4',
        "# TYPE z gauge",
        'z{replica="r1"} 6',
    ]
