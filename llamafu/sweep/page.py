"""A sweep as one self-contained HTML page: without scripts, and without any other file or network access."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from llamafu.sweep.mixes import label
from llamafu.sweep.style import STYLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llamafu.sweep.run import Answer, Sweep

_HEIGHT, _STEP = 28, 4
_WIDEST = 96
"""Most bars of a curve; for a longer answer each bar shows the largest value of several tokens."""


def page(sweep: Sweep) -> str:
    """Return the HTML of `sweep`; every text in it is escaped."""
    title = escape(f"Sweep of {', '.join(a.name for a in sweep.adapters) or 'nothing'} on {sweep.model}")
    body = [f"<h1>{title}</h1>", _facts(sweep), *([_overview(sweep)] if len(sweep.prompts) > 1 else [])]
    body += [_section(sweep, index) for index in range(len(sweep.prompts))]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join([*body, _FOOT, "</body></html>", ""])


_FOOT = (
    "<footer>KL is the divergence KL(base ‖ mix) between the distributions of the next token, in nats: 0 where the mix "
    "changes nothing. “First” is at the first token of the answer, “mean” over all the tokens of the answer of the base, which "
    "the mix is made to say. The curve has one bar a token, as high as the square root of its KL, and the same for the "
    "whole page; point at a bar to read it.</footer>"
)


def _facts(sweep: Sweep) -> str:
    how = f"temperature {sweep.temperature:g}{'' if sweep.temperature else ' (greedy)'}, seed {sweep.seed}"
    asked = "as a chat message" if sweep.chat else "as plain text to continue"
    facts = [
        ("Model", escape(sweep.model)),
        ("Library", escape(sweep.library)),
        ("Prompts", f"{len(sweep.prompts)}, each {asked}"),
        ("Answers", f"{len(sweep.answers)}, at most {sweep.max_tokens} tokens each, {how}"),
        *((f"Adapter {escape(a.name)}", f"{escape(a.file)} <code>{escape(a.digest)}</code>") for a in sweep.adapters),
    ]
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts) + "</dl>"


def _overview(sweep: Sweep) -> str:
    """Return the table of each mix's mean over all prompts."""
    means = [sweep.mean_kl(index) for index in range(len(sweep.mixes))]
    rows = "".join(
        f'<tr><th scope="row">{_mix(mix)}</th><td><span class="bar">{_bar(mean, max(means))}</span></td></tr>'
        for mix, mean in zip(sweep.mixes, means, strict=True)
    )
    return (
        f'<h2>All {len(sweep.prompts)} prompts</h2>\n<table class="overview"><thead><tr><th scope="col">mix</th>'
        f'<th scope="col">mean KL</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _section(sweep: Sweep, index: int) -> str:
    """Return the table of one prompt, with a row for each mix."""
    largest = max(answer.mean_kl for answer in sweep.answers)
    peak = max(kl for answer in sweep.answers for kl in answer.kls)
    rows = "".join(_row(answer, sweep.places[index], largest, peak) for answer in sweep.to(index))
    head = "".join(f'<th scope="col">{name}</th>' for name in ("mix", "answer", "KL first", "mean KL", "token by token"))
    return (
        f'<h2 class="prompt">{escape(sweep.prompts[index])}</h2>\n<table><thead><tr>{head}</tr></thead><tbody>\n'
        f"{rows}</tbody></table>"
    )


def _row(answer: Answer, places: Sequence[str], largest: float, peak: float) -> str:
    cut = '<span class="cut" title="max_tokens was reached">…</span>' if answer.finish_reason == "length" else ""
    text = escape(answer.text.strip()) or '<span class="empty">(nothing)</span>'
    speed = "" if answer.tokens_per_second is None else f'<span class="speed">{answer.tokens_per_second:.0f} tokens/s</span>'
    return (
        f'<tr{"" if answer.mix else " class=base"}><th scope="row">{_mix(answer.mix)}</th>'
        f'<td class="answer">{text}{cut}{speed}</td>'
        f'<td class="number" data-name="KL first">{_number(answer.kl)}</td>'
        f'<td class="bar" data-name="mean KL">{_bar(answer.mean_kl, largest)}</td>'
        f'<td class="curve" data-name="token by token">{_curve(answer.kls, places, peak)}</td></tr>\n'
    )


def _mix(mix: dict[str, float]) -> str:
    if not mix:
        return label(mix)
    return " + ".join(f'<span class="part">{escape(name)} <b>{scale:g}</b></span>' for name, scale in mix.items())


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.3f}" if value >= 0.0005 else f"{value:.0e}"  # noqa: PLR2004 - the least number that rounds to 0.001


def _bar(value: float, largest: float) -> str:
    share = value / largest if largest else 0.0
    return f'<span class="value">{_number(value)}</span><span class="track"><i style="width:{share:.1%}"></i></span>'


def _curve(kls: Sequence[float], places: Sequence[str], peak: float) -> str:
    """Return bars for one or several tokens each as SVG; the tooltip of a bar has its tokens and value."""
    bars = list(_bars(kls, places, peak))
    width = len(bars) * _STEP
    return (
        f'<svg viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="KL at {len(kls)} tokens, at most {_number(max(kls))}">{"".join(bars)}</svg>'
    )


def _bars(kls: Sequence[float], places: Sequence[str], peak: float) -> Iterator[str]:
    size = -(-len(kls) // _WIDEST)
    for start in range(0, len(kls), size):
        kl = max(kls[start : start + size])
        height = max(1.0, _HEIGHT * math.sqrt(kl / peak) if peak else 0.0)
        name = escape(f"{''.join(places[start : start + size])!r}: {_number(kl)} nats")
        yield (
            f'<rect x="{start // size * _STEP}" y="{_HEIGHT - height:.1f}" width="{_STEP - 1}" height="{height:.1f}">'
            f"<title>{name}</title></rect>"
        )
