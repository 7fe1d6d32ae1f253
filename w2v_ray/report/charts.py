"""Charts as inline SVG, made without a script.

They have no view box: places across are percentages, so that a chart is as wide as there is room and its
text keeps its size. Colours are classes of the page's style, which the two themes give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

from w2v_ray.report.distributions import Distribution
from w2v_ray.report.embedding_map import EmbeddingMap
from w2v_ray.report.runs import Drift, Throughput
from w2v_ray.report.wording import bar_range, count_text, percent, short, time_text, visible

__all__ = ["bar", "drift_lines", "embedding_map", "histogram", "throughput_areas", "ticks"]

_HEIGHT, _SMALL = 190, 130
_TOP, _BOTTOM = 22, 24  # room for the first label, and for those of the axis
_MAP_RATIO = 4 / 3  # as the style has it
_MAP_SHARE = 0.94  # of the room, so that no mark is cut
_NOTHING = Markup("")


def histogram(name: str, found: Distribution, *, title: str, unit: str, noun: str) -> Markup:
    """How many values lie where, with a line at the median.

    Args:
        name: What ids in the page begin with.
        found: The values.
        title: What they are.
        unit: Of the values; empty for shares.
        noun: What has such a value, such as ``segment``.
    """
    bins = found.bins
    top = ticks(max(bin_.count for bin_ in bins), 3)[-1]
    slot = 100 / len(bins)
    parts = [_grid(top, ticks(top, 3)[1:], lambda value: f"{value:,.0f}")]
    for place, bin_ in enumerate(bins):
        height = (_HEIGHT - _TOP - _BOTTOM) * bin_.count / top
        if bin_.count:
            height = max(height, 1.0)
        label = f"{bar_range(bin_.start, bin_.end, unit)}: {count_text(bin_.count, noun)}"
        parts.append(
            Markup('<g><title>{}</title><rect class="hit" x="{}%" y="{}" width="{}%" height="{}"/>').format(
                label, _n(place * slot), _TOP, _n(slot), _HEIGHT - _TOP - _BOTTOM
            )
            + Markup('<rect class="bar" x="{}%" y="{}" width="{}%" height="{}"/></g>').format(
                _n((place + 0.06) * slot), _n(_HEIGHT - _BOTTOM - height), _n(0.88 * slot), _n(height)
            )
        )
    start, width = bins[0].start, bins[0].end - bins[0].start if bins[0].end is not None else 1.0

    def across(value: float) -> float:
        return (value - start) / width * slot

    last = start + len(bins) * width
    parts.append(_x_axis([(across(value), f"{value:,g}") for value in ticks_between(start, last, 6)], unit))
    middle = across(found.p50)
    anchor = "end" if middle > 60 else "start"
    parts.append(
        Markup('<line class="mark" x1="{0}%" x2="{0}%" y1="{1}" y2="{2}"/>').format(
            _n(middle), _TOP - 8, _HEIGHT - _BOTTOM
        )
        + Markup('<text class="marked" x="{}%" dx="{}" y="{}" text-anchor="{}">median {}</text>').format(
            _n(middle), -5 if anchor == "end" else 5, _TOP - 8, anchor, _value(found.p50, unit)
        )
    )
    described = (
        f"Histogram of {count_text(found.count, noun)}. Median {_value(found.p50, unit)}, mean "
        f"{_value(found.mean, unit)}, 80% between {_value(found.p10, unit)} and {_value(found.p90, unit)}, "
        f"all between {_value(found.min, unit)} and {_value(found.max, unit)}."
    )
    rows = [
        (bar_range(bin_.start, bin_.end, unit), f"{bin_.count:,}", percent(bin_.count / found.count))
        for bin_ in bins
    ]
    head = (title, f"{noun}s", "share")
    return _figure(name, title, described, _NOTHING.join(parts), _table(f"Numbers of {title}", head, rows))


def throughput_areas(name: str, found: Throughput) -> Markup:
    """How fast each stage was over time: a small chart for each, all of one scale, and one table."""
    number = max(map(len, found.rates.values()), default=1)
    top = ticks(max((rate for rates in found.rates.values() for rate in rates), default=1.0) or 1.0, 2)[-1]
    in_minutes = found.interval_s * number >= 300
    scale, unit = (60.0, "min") if in_minutes else (1.0, "s")
    end = found.interval_s * number / scale
    axis = _x_axis(
        [(value / end * 100, f"{value:,g}") for value in ticks_between(0, end, 4)], unit, height=_SMALL
    )
    parts = []
    names = [visible(stage, most=40) for stage in found.rates]
    for place, (stage, rates) in enumerate(zip(names, found.rates.values(), strict=True)):
        points = [((n + 0.5) / len(rates) * 1000, 1 - rate / top) for n, rate in enumerate(rates)]
        edges = [(0.0, points[0][1]), *points, (1000.0, points[-1][1])]
        drawn = [
            Markup('<path class="band" d="{}V1H0Z"/>').format(_path(edges)),
            Markup('<path class="line s0" d="{}"/>').format(_path(edges)),
        ]
        body = _grid(top, [top], lambda value: f"{value:,g}x", height=_SMALL)
        body += _stretched(drawn, height=_SMALL - _TOP - _BOTTOM) + axis
        mean = sum(rates) / len(rates)
        described = (
            f"Over {end:,.1f} {unit}: mean {mean:,.1f} seconds of audio a second, at most {max(rates):,.1f}."
        )
        parts.append(_figure(f"{name}-{place}", stage, described, body, _NOTHING, height=_SMALL))
    rows = [
        (
            f"{n * found.interval_s / scale:,.1f} {unit}",
            *(f"{rates[n]:,.1f}" for rates in found.rates.values()),
        )
        for n in range(number)
    ]
    table = _numbers("throughput by stage", _table("Throughput by stage", ("from", *names), rows))
    return Markup('<div class="charts small">{}</div>{}').format(_NOTHING.join(parts), table)


def drift_lines(name: str, found: Drift, *, shown: Sequence[str], note: Markup) -> Markup:
    """A number over runs, with a band of what was there before the last one.

    Args:
        name: What ids in the page begin with.
        found: The number.
        shown: The value of each point as text.
        note: What stands below the title.
    """
    points = found.points
    highest = max(max(point.value, point.high or 0.0) for point in points)
    lowest = min(min(point.value, point.value if point.low is None else point.low) for point in points)
    if lowest < 0.6 * highest:
        base, span = 0.0, 1.08 * highest or 1.0
    else:  # a change of a few percent is not to look like a fall
        span = max(1.16 * (highest - lowest), 0.3 * highest) or 1.0
        base = (lowest + highest - span) / 2
    height = 110

    def y(value: float) -> float:
        return 1 - (value - base) / span

    def x(place: int) -> float:
        return 3 + 94 * place / (len(points) - 1)

    layers = []
    if all(point.low is not None and point.high is not None for point in points):
        upper = [(x(n) * 10, y(point.high or 0.0)) for n, point in enumerate(points)]
        lower = [(x(n) * 10, y(point.low or 0.0)) for n, point in enumerate(points)]
        layers.append(Markup('<path class="band" d="{}Z"/>').format(_path([*upper, *reversed(lower)])))
    line = _path([(x(n) * 10, y(point.value)) for n, point in enumerate(points)])
    layers.append(Markup('<path class="line s0" d="{}"/>').format(line))
    parts = [_stretched(layers, top=6, height=height - 12)]
    if found.earlier is not None:
        low, high = (6 + y(value) * (height - 12) for value in (found.earlier[0], found.earlier[2]))
        parts.insert(
            0,
            Markup('<rect class="usual" x="0" width="100%" y="{}" height="{}"/>').format(
                _n(high), _n(max(low - high, 1.0))
            ),
        )
    for place, point in enumerate(points):
        is_last = place == len(points) - 1
        parts.append(
            Markup('<circle class="{}" cx="{}%" cy="{}" r="{}"><title>{}: {}</title></circle>').format(
                "dot last outside" if is_last and found.is_outside else "dot last" if is_last else "dot",
                _n(x(place)),
                _n(6 + y(point.value) * (height - 12)),
                4.5 if is_last else 2.5,
                time_text(point.started_at),
                shown[place],
            )
        )
    described = f"{found.name} over {count_text(len(points), 'run')}, the last {shown[-1]}."
    rows = [(time_text(point.started_at), text) for point, text in zip(points, shown, strict=True)]
    table = _table(f"Numbers of {found.name} over runs", ("run started", found.name), rows)
    return _figure(name, found.name, described, _NOTHING.join(parts), table, legend=note, height=height)


def embedding_map(name: str, found: EmbeddingMap, *, title: str) -> Markup:
    """Points on two axes of one scale, a mark and a colour for each group."""
    xs, ys = [point.x for point in found.points], [point.y for point in found.points]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    scale = _MAP_SHARE / (max(right - left, (high - low) * _MAP_RATIO) or 1.0)  # of the width, for a unit

    def x(value: float) -> float:
        return 50 + 100 * scale * (value - (left + right) / 2)

    def y(value: float) -> float:
        return 50 - 100 * scale * _MAP_RATIO * (value - (low + high) / 2)

    ungrouped = "g0" if found.coloured_by is None else "g-none"
    marks = [
        Markup('<use class="{}" href="#mark-{}" x="{}%" y="{}%"><title>{}</title></use>').format(
            ungrouped if point.group is None else f"g{point.group}",
            "none" if point.group is None else point.group,
            _n(x(point.x)),
            _n(y(point.y)),
            (f"{visible(found.groups[point.group][0], most=60)}: " if point.group is not None else "")
            + short(point.name, most=80),
        )
        for point in sorted(found.points, key=lambda point: point.group is not None)
    ]
    axes = Markup(
        '<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>'
        '<line class="grid" x1="0" x2="100%" y1="{1}%" y2="{1}%"/>'
    ).format(_n(x(0.0)), _n(y(0.0)))
    described = (
        f"{count_text(len(found.points), 'embedding')} on the first two principal components, which show "
        f"{percent(sum(found.explained))} of their variance."
    )
    rows = []
    for place, (group, count) in enumerate(found.groups):
        own = [point for point in found.points if point.group == place]
        across, up = (sum(values) / len(own) for values in zip(*((p.x, p.y) for p in own), strict=True))
        rows.append((visible(group, most=60), f"{count:,}", f"{across:.2f}", f"{up:.2f}"))
    table = (
        _table("Groups on the map", ("group", "points", "mean across", "mean up"), rows) if rows else _NOTHING
    )
    entries = [
        (f"g{n}", f"{visible(group, most=40)} ({count:,})") for n, (group, count) in enumerate(found.groups)
    ]
    rest = found.num_in_others + found.num_ungrouped
    if entries and rest:
        others = f"{count_text(found.num_other_groups, 'other group')}, or " if found.num_other_groups else ""
        what = f"{others}none"
        entries.append(("g-none", f"{what} ({rest:,})"))
    legend = _legend(entries) if entries else _NOTHING
    body = axes + _NOTHING.join(marks)
    return _figure(
        name,
        title,
        described,
        body,
        table,
        legend=legend,
        kind="map",
    )


def bar(share: float, *, kind: str = "") -> Markup:
    """A bar in the cell of a table, next to the number it shows."""
    return Markup(
        '<svg class="cell" aria-hidden="true" width="100%" height="10">'
        '<rect class="track" width="100%" height="10"/>'
        '<rect class="bar {}" width="{}%" height="10"/></svg>'
    ).format(kind, _n(100 * min(max(share, 0.0), 1.0)))


def ticks(most: float, number: int) -> list[float]:
    """Round numbers from 0 up to at least ``most``, about as many as ``number``."""
    step = _step(most / number)
    return [step * place for place in range(math.ceil(most / step - 1e-9) + 1)]


def ticks_between(start: float, end: float, number: int) -> list[float]:
    """Round numbers from ``start`` to ``end``, at most ``number`` of them."""
    step = _step((end - start) / number)
    first = math.ceil(start / step - 1e-9)
    return [round(step * place, 9) for place in range(first, math.floor(end / step + 1e-9) + 1)]


def _step(least: float) -> float:
    scale = 10 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return float(next(nice * scale for nice in (1, 2, 5, 10) if nice * scale >= least * (1 - 1e-9)))


def _grid(
    top: float, values: Iterable[float], text: Callable[[float], str], *, height: float = _HEIGHT
) -> Markup:
    parts = []
    for value in values:
        y = height - _BOTTOM - (height - _TOP - _BOTTOM) * value / top
        parts.append(
            Markup(
                '<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/>'
                '<text class="tick" x="0" y="{1}">{2}</text>'
            ).format(_n(y), _n(y - 4), text(value))
        )
    parts.append(Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(height - _BOTTOM))
    return _NOTHING.join(parts)


def _x_axis(places: Sequence[tuple[float, str]], unit: str, *, height: float = _HEIGHT) -> Markup:
    parts = []
    for number, (across, text) in enumerate(places):
        is_last = number == len(places) - 1
        anchor = "start" if across < 3 else "end" if across > 94 else "middle"
        parts.append(
            Markup('<text class="tick" x="{}%" y="{}" text-anchor="{}">{}</text>').format(
                _n(across), height - 8, anchor, f"{text} {unit}" if is_last and unit else text
            )
        )
    return _NOTHING.join(parts)


def _stretched(
    paths: Iterable[Markup], *, top: float = _TOP, height: float = _HEIGHT - _TOP - _BOTTOM
) -> Markup:
    """Paths 1000 wide and 1 high, stretched over the chart."""
    return Markup(
        '<svg x="0" y="{}" width="100%" height="{}" viewBox="0 0 1000 1" preserveAspectRatio="none" '
        'overflow="visible">{}</svg>'
    ).format(top, height, _NOTHING.join(paths))


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.4f}" for x, y in points)


def _legend(entries: Sequence[tuple[str, str]]) -> Markup:
    parts = [
        Markup(
            '<li><svg aria-hidden="true" width="16" height="16">'
            '<use class="{}" href="#mark-{}" x="8" y="8"/></svg> {}</li>'
        ).format(kind, kind.removeprefix("g").removeprefix("-"), text)
        for kind, text in entries
    ]
    return Markup('<ul class="legend">{}</ul>').format(_NOTHING.join(parts))


def _figure(
    name: str,
    title: str,
    described: str,
    body: Markup,
    table: Markup,
    *,
    legend: Markup = _NOTHING,
    height: int = _HEIGHT,
    kind: str = "",
) -> Markup:
    size = _NOTHING if kind == "map" else Markup(' height="{}"').format(height)
    return Markup(
        '<figure class="chart {kind}"><figcaption>{title}</figcaption>{legend}'
        '<svg role="img" width="100%"{size} aria-labelledby="{name}-title {name}-desc">'
        '<title id="{name}-title">{title}</title><desc id="{name}-desc">{described}</desc>{body}</svg>'
        "{more}</figure>"
    ).format(
        kind=kind,
        title=title,
        legend=legend,
        size=size,
        name=name,
        described=described,
        body=body,
        more=_numbers(title, table) if table else "",
    )


def _numbers(title: str, table: Markup) -> Markup:
    """A table that is shown when it is asked for."""
    return Markup('<details><summary>Numbers<span class="unseen"> of {}</span></summary>{}</details>').format(
        title, table
    )


def _table(label: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    columns = _NOTHING.join(Markup('<th scope="col">{}</th>').format(text) for text in head)
    body = _NOTHING.join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            first, _NOTHING.join(Markup("<td>{}</td>").format(text) for text in rest)
        )
        for first, *rest in rows
    )
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{}"><table class="numbers">'
        "<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(label, columns, body)


def _value(number: float, unit: str) -> str:
    digits = 2 if abs(number) < 10 else 1
    return f"{number:,.{digits}f} {unit}".rstrip()


def _n(number: float) -> str:
    """A number in as few characters as do."""
    return f"{number:.2f}".rstrip("0").rstrip(".")
