"""Heat map of an adapter's norms as text: a row for each module, a cell for each layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llamafu.cli.style import BOLD, DIM, Style, colour

if TYPE_CHECKING:
    from llamafu.adapters import AdapterNorms

_COLOURS = tuple(map(colour, (53, 54, 60, 24, 30, 36, 77, 149, 226)))
"""Dark violet to yellow, as near to viridis as terminals' 256 colours come."""
_BLOCKS, _DIGITS = "▁▂▃▄▅▆▇█", "123456789"
_NUMBERED_LAYERS = 5  # every fifth layer has its number above its cell
_LEAST_COLUMNS = 8  # for the cells, however narrow the terminal is


def heat_map(norms: AdapterNorms, style: Style, *, width: int, unicode: bool) -> list[str]:
    """Return the lines of the map; layers that do not fit into `width` columns follow in a further block of rows.

    Cells are colours where `style` paints, else blocks of growing height, or digits without `unicode`.
    """
    sizes = [float(size) for size in norms.frobenius.flat if not math.isnan(size)]
    top = max([*sizes, *(norm.frobenius for norm in norms.others.values())])
    names = (*norms.modules, *norms.others)
    first = max(map(len, ("module", *names)))
    totals = {name: float(size) for name, size in zip(norms.modules, _totals(norms), strict=True)}
    totals |= {name: norm.frobenius for name, norm in norms.others.items()}
    figures = {name: f"{total:.3g}" for name, total in totals.items()}
    second = max(map(len, ("all", *figures.values())))
    columns = max(width - first - second - 6, _LEAST_COLUMNS)
    cell = 2 if 2 * len(norms.layers) <= columns else 1
    ramp = _Ramp(style, top, cell, unicode=unicode)
    lines = [style("norm of the change of each matrix (Frobenius, at scale 1)", BOLD)]
    for start in range(0, len(norms.layers), columns // cell):
        band = norms.layers[start : start + columns // cell]
        lines.append(style(f"  {'module':<{first}}  {'all':>{second}}  {_numbers(band, cell)}", DIM))
        for column, name in enumerate(norms.modules):
            cells = "".join(ramp(float(size)) for size in norms.frobenius[start : start + len(band), column])
            lines.append(f"  {name:<{first}}  {figures[name]:>{second}}  {cells}")
    for name, norm in norms.others.items():
        lines.append(f"  {name:<{first}}  {figures[name]:>{second}}  {ramp(norm.frobenius)} {style('outside the layers', DIM)}")
    return [*lines, f"  {style('0', DIM)} {ramp.legend()} {style(f'{top:.3g}', DIM)}{ramp.missing_legend(norms)}"]


class _Ramp:
    """Maps a norm from 0 to `top` to the text of a cell."""

    def __init__(self, style: Style, top: float, cell: int, *, unicode: bool) -> None:
        self._style = style
        self._top = top or 1.0
        self._cell = cell
        self._steps = [style("█" * cell if style.paints else block * cell, shade) for block, shade in _shades(style)]
        if not unicode:
            self._steps = [style(digit * cell, shade) for digit, shade in zip(_DIGITS, _COLOURS, strict=True)]
        self._missing = ("·" if unicode else ".") * cell

    def __call__(self, size: float) -> str:
        if math.isnan(size):
            return self._style(self._missing, DIM)
        return self._steps[min(int(size / self._top * len(self._steps)), len(self._steps) - 1)]

    def legend(self) -> str:
        return "".join(self._steps)

    def missing_legend(self, norms: AdapterNorms) -> str:
        absent = any(math.isnan(size) for size in norms.frobenius.flat)
        return f"   {self._style(f'{self._missing} not changed', DIM)}" if absent else ""


def _shades(style: Style) -> list[tuple[str, str]]:
    """Return pairs of block and colour: full blocks in all colours, or without colours the eight heights."""
    return [("█", shade) for shade in _COLOURS] if style.paints else [(block, "") for block in _BLOCKS]


def _totals(norms: AdapterNorms) -> list[float]:
    """Root of the sum of squares over the layers, by module."""
    return [math.sqrt(sum(size * size for size in column if not math.isnan(size))) for column in norms.frobenius.T.tolist()]


def _numbers(layers: tuple[int, ...], cell: int) -> str:
    """Write the numbers of every fifth layer above its cell."""
    text = ""
    for index, layer in enumerate(layers):
        if layer % _NUMBERED_LAYERS == 0 and len(text) <= index * cell:
            text = text.ljust(index * cell) + f"{layer} "
    return text.rstrip()
