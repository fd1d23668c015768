"""Plots of adapters as PNG files, drawn with matplotlib (the extra `plot`)."""

from __future__ import annotations

import importlib.util
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._util.atomic import whole_file
from llamafu.errors import ErrorCode, LlamafuError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from llamafu.adapters.analysis.comparison import Comparison
    from llamafu.adapters.analysis.norms import AdapterNorms

_DPI = 100
_CELL = (0.30, 0.14)  # inches: the width of a layer where there are few, and where there are many
_WIDEST = 11.0  # inches for all layers together, before they get narrower than the wider cell
_ROW = 0.42  # inches
_MOST_ROWS = 60
_MISSING = {"facecolor": "#ececec", "hatch": "////", "edgecolor": "#bdbdbd"}
_GREY = "#555555"
_MINUS = "\N{MINUS SIGN}"
_MULTIPLES = 4  # small matrices side by side
_FEW_COLUMNS = 40  # up to which every layer is labelled
_READABLE = 8  # adapters up to which the small matrices show their numbers


def require_matplotlib() -> None:
    """Raise LlamafuError unless matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        message = 'drawing needs matplotlib, which is not installed: pip install "llamafu[plot]"'
        raise LlamafuError(message, code=ErrorCode.INVALID_PARAM)


def plot_norms(norms: AdapterNorms, output: Path, *, name: str) -> None:
    """Draw the layer x module heat map of the adapter called `name` as the PNG file `output`.

    Raises LlamafuError without matplotlib, OSError when `output` cannot be written; then there is no new file.
    """
    require_matplotlib()
    _save(norms_figure(norms, name), output)


def plot_comparison(comparison: Comparison, output: Path) -> None:
    """Draw the matrix of cosines, and a small one for each module, as the PNG file `output`; raises like `plot_norms`."""
    require_matplotlib()
    _save(comparison_figure(comparison), output)


def norms_figure(norms: AdapterNorms, name: str) -> Figure:
    """Make the figure of `plot_norms`: brightness is the Frobenius norm, hatched cells are not changed."""
    from matplotlib.figure import Figure

    tables = [norms.frobenius.T] if norms.layers else []
    if norms.others:
        tables.append(np.array([[norm.frobenius] for norm in norms.others.values()]))
    top = max(float(np.nanmax(table)) for table in tables) or 1.0
    columns = len(norms.layers)
    width = min(columns * _CELL[0], max(_WIDEST, columns * _CELL[1]))
    widths = [max(width, 1.0)] * bool(columns) + [0.45] * bool(norms.others)
    rows = min(max(map(len, tables)), _MOST_ROWS)
    figure = Figure(figsize=(max(sum(widths) + 2.9 * bool(columns) + 2.0 * bool(norms.others), 6.5), rows * _ROW + 1.9))
    figure.set_layout_engine("constrained")
    axes = list(figure.subplots(1, len(tables), squeeze=False, width_ratios=widths)[0])
    for axis, table in zip(axes, tables, strict=True):
        image = _image(axis, table, "viridis", (0.0, top))
    if columns:
        _ticks(axes[0], x=_thinned(norms.layers), y=norms.modules)
        axes[0].set_xlabel("layer")
        axes[0].set_ylabel("module")
    if norms.others:
        _ticks(axes[-1], x=[""], y=list(norms.others))
        axes[-1].set_xlabel("outside\nthe layers")
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=max(8, 5 * rows))
    bar.set_label("Frobenius norm of ΔW\n(weight units, scale 1)")
    bar.outline.set_visible(False)
    _title(figure, f"{name}: where the adapter changes the model", "brighter = larger change; hatched = not changed")
    return figure


def comparison_figure(comparison: Comparison) -> Figure:
    """Make the figure of `plot_comparison`: red is the same direction, blue the opposite; hatched is not changed."""
    from matplotlib.figure import Figure

    count, modules = len(comparison.names), len(comparison.by_module)
    columns = min(_MULTIPLES, math.ceil(math.sqrt(modules)))
    lines = -(-modules // columns)
    big = max(3.2, (0.75 if count <= _READABLE else 0.6) * count)
    small = max(1.7, (0.42 if count <= _READABLE else 0.2) * count)
    figure = Figure(figsize=(big + 2.2 + columns * (small + 0.25) + 0.9, max(big + 1.5, lines * (small + 0.55) + 1.0)))
    figure.set_layout_engine("constrained", wspace=0.04, hspace=0.04)
    ratios = [big + 1.4, columns * (small + 0.25) + 1.6]
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=ratios)[0]
    whole = left.subplots()
    _matrix(whole, comparison.overall, fontsize=11 if count <= _READABLE else 7)
    whole.set_title("all tensors", fontsize=11)
    _ticks(whole, x=comparison.names, y=comparison.names, slanted=True)
    grid = right.subplots(lines, columns, squeeze=False)
    for axis in grid.flat[modules:]:
        axis.set_visible(False)
    for axis, (module, cosines) in zip(grid.flat, comparison.by_module.items(), strict=False):
        image = _matrix(axis, cosines, fontsize=8 if count <= _READABLE else 0)
        axis.set_title(module, fontsize=9, parse_math=False)
        axis.set(xticks=[], yticks=[])
    bar = right.colorbar(image, ax=list(grid.flat), pad=0.03, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label("cosine of the changes ΔW")
    bar.ax.set_yticklabels([f"{_MINUS}1  undo each other", f"{_MINUS}0.5", "0  leave alone", "0.5", "1  same way"])
    bar.outline.set_visible(False)
    _title(
        figure,
        "Who interferes with whom",
        "the small matrices have the order of the large one; grey = itself, hatched = not changed",
    )
    return figure


def _matrix(axis: Axes, cosines: NDArray[np.float64], *, fontsize: int) -> Any:
    """Draw one matrix: the diagonal, which is always 1, is grey; an adapter without a change there is hatched."""
    idle = np.diagonal(cosines) == 0
    shown = np.where(idle[:, None] | idle[None, :], np.nan, cosines)
    image = _image(axis, shown, "RdBu_r", (-1.0, 1.0))
    axis.set_aspect("equal")
    for (row, column), cosine in np.ndenumerate(shown):
        if np.isnan(cosine):
            continue
        if row == column:
            axis.add_patch(_square(row))
        elif fontsize:
            ink = "white" if abs(cosine) > 0.6 else "black"  # noqa: PLR2004 - where the colours get dark
            text = f"{cosine:+.2f}" if round(abs(cosine), 2) else "0.00"
            axis.text(column, row, text.replace("-", _MINUS), ha="center", va="center", fontsize=fontsize, color=ink)
    return image


def _square(index: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((index - 0.5, index - 0.5), 1, 1, facecolor="#d0d0d0", edgecolor="white")


def _image(axis: Axes, table: NDArray[np.float64], colours: str, limits: tuple[float, float]) -> Any:
    """Draw the cells of a table; those that are NaN show the hatched background."""
    axis.patch.set(**_MISSING)
    image = axis.imshow(np.ma.masked_invalid(table), cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    rows, columns = table.shape
    axis.set_xticks(np.arange(1, columns) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1 if columns <= _FEW_COLUMNS else 0.5)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    return image


def _ticks(axis: Axes, *, x: Sequence[str], y: Sequence[str], slanted: bool = False) -> None:
    axis.set_xticks(range(len(x)), labels=x, parse_math=False, fontsize=9)
    axis.set_yticks(range(len(y)), labels=y, parse_math=False, fontsize=9)
    if slanted:
        for label in axis.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")


def _thinned(layers: Sequence[int]) -> list[str]:
    """Label every layer, or where there are too many those with round numbers."""
    step = next(step for step in (1, 2, 5, 10, 50, 100, 10**9) if len(layers) / step <= _FEW_COLUMNS or step == 10**9)
    return ["" if layer % step else str(layer) for layer in layers]


def _title(figure: Figure, title: str, hint: str) -> None:
    figure.suptitle(title, fontsize=12, fontweight="bold", parse_math=False)
    figure.supxlabel(hint, fontsize=8.5, color=_GREY)


def _save(figure: Figure, output: Path) -> None:
    with whole_file(output) as unfinished, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in letters that the font lacks
        figure.savefig(unfinished, format="png", dpi=_DPI, metadata={"Software": None})
