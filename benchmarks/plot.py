"""The plot: throughput, P50 and P99 by callers, 200 B, a line for each subject. SVG by hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmarks.measuring import Results, Spread
from benchmarks.shapes import EIGHT, LABELS, MANY, MESHES, ONE, REFERENCES, Load, SubjectName

LOADS: tuple[tuple[Load, str], ...] = ((ONE, "1"), (EIGHT, "8"), (MANY, "64"))
SUBJECTS = (*REFERENCES, *MESHES)
# Okabe and Ito's palette: told apart by readers who see fewer colours, too. Shapes tell the rest.
COLOURS: dict[SubjectName, str] = {
    "one-hop": "#999999",
    "two-hop": "#56b4e9",
    "envoy": "#009e73",
    "aio": "#e69f00",
    "native": "#d55e00",
}
WIDTH, HEIGHT = 1080, 380
PANEL_WIDTH, PANEL_HEIGHT = 270, 240
PANEL_TOP, PANEL_LEFT, PANEL_STEP = 70, 70, 350
FONT = 'font-family="sans-serif"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes."""

    title: str
    figure: str


PANELS = (Panel("requests/s", "per_s"), Panel("P50, ms", "p50_ms"), Panel("P99, ms", "p99_ms"))


@dataclass(frozen=True, slots=True)
class Scale:
    """From a value to a height on the page; logarithmic, since subjects differ by a factor of ten and more."""

    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float]) -> "Scale":
        """One from a power of ten to another that has room for all values."""
        low = math.floor(math.log10(min(values)))
        high = max(low + 1, math.ceil(math.log10(max(values))))
        return cls(tuple(10.0**power for power in range(low, high + 1)))

    def y(self, value: float) -> float:
        """Pixels from the top of the drawing."""
        low, high = math.log10(self.ticks[0]), math.log10(self.ticks[-1])
        return PANEL_TOP + PANEL_HEIGHT * (1 - (math.log10(value) - low) / (high - low))


def svg(results: Results) -> str:
    """The drawing; axes without lines where nothing was measured."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" {FONT} font-size="12">',
        "<title>Throughput, P50 and P99 by callers, 200 B</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for index, panel in enumerate(PANELS):
        parts += _panel(panel, PANEL_LEFT + index * PANEL_STEP, results)
    return "\n".join([*parts, *_legend(results), "</svg>"]) + "\n"


def _spread(results: Results, subject: SubjectName, load: Load, figure: str) -> Spread | None:
    return results.of(subject, "200 B", load).spread(figure)


def _text(x: float, y: float, content: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="#222222" {more}>{escape(content)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, more: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {more}/>'


def _column(left: float, index: int) -> float:
    return left + PANEL_WIDTH * (index + 0.5) / len(LOADS)


def _panel(panel: Panel, left: float, results: Results) -> list[str]:
    bottom = PANEL_TOP + PANEL_HEIGHT
    parts = [_text(left, PANEL_TOP - 12, panel.title, 'font-size="14" font-weight="600"')]
    for index, (_, label) in enumerate(LOADS):
        parts.append(_text(_column(left, index), bottom + 18, label, 'text-anchor="middle"'))
    parts.append(_text(left + PANEL_WIDTH / 2, bottom + 38, "callers", 'text-anchor="middle"'))
    spreads = [_spread(results, subject, load, panel.figure) for subject in SUBJECTS for load, _ in LOADS]
    values = [value for spread in spreads if spread for value in (spread.least, spread.most) if value > 0]
    if not values:
        return parts
    scale = Scale.over(values)
    for tick in scale.ticks:
        y = scale.y(tick)
        parts.append(_line(left, y, left + PANEL_WIDTH, y, 'stroke="#dddddd"'))
        parts.append(_text(left - 8, y + 4, f"{tick:,.10g}", 'text-anchor="end"'))
    for subject in SUBJECTS:
        parts += _curve(panel, left, scale, subject, results)
    return parts


def _curve(panel: Panel, left: float, scale: Scale, subject: SubjectName, results: Results) -> list[str]:
    colour = COLOURS[subject]
    points: list[tuple[float, float]] = []
    parts = []
    shift = (SUBJECTS.index(subject) - len(SUBJECTS) // 2) * 4  # so that whiskers do not hide each other
    for index, (load, _) in enumerate(LOADS):
        spread = _spread(results, subject, load, panel.figure)
        if spread and spread.least > 0:
            x = _column(left, index) + shift
            points.append((x, scale.y(spread.median)))
            parts.append(_line(x, scale.y(spread.least), x, scale.y(spread.most), f'stroke="{colour}"'))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="5 3"' if subject in REFERENCES else ""
    parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
    return [*parts, *(_marker(x, y, subject) for x, y in points)]


def _marker(x: float, y: float, subject: SubjectName) -> str:
    """Round for a reference, square for a mesh."""
    colour = COLOURS[subject]
    if subject in REFERENCES:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}"/>'


def _legend(results: Results) -> list[str]:
    parts = []
    x = float(PANEL_LEFT)
    for subject in SUBJECTS:
        if any(_spread(results, subject, load, "per_s") for load, _ in LOADS):
            parts += [_marker(x, 22, subject), _text(x + 10, 26, LABELS[subject])]
            x += 190
    note = "200 B; log scales; median, and min to max of the repetitions"
    return [
        *parts,
        _text(WIDTH - 20, HEIGHT - 6, note, 'text-anchor="end" fill-opacity="0.7"'),
    ]
