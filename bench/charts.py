"""SVG pictures of benchmark results, written by hand: no drawing library is among libvar's dependencies, and the same
numbers must give the same bytes everywhere, since a test compares them."""

import html

WIDTH = 900
LABEL_WIDTH = 330
BAR_WIDTH = 390
ROW = 22
LONGEST = 12  # times the first bar: longer ones are cut
FONT = 'font-family="Helvetica, Arial, sans-serif"'
INK, FAINT, GRID = "#1f2933", "#616e7c", "#d9dee4"
COLOURS = {"libvar": "#0b7285", "own": "#7cc4cf", "moves": "#e8890c", "plain": "#a7b1bc"}
LEGEND = [("libvar", "libvar, with redistribution"), ("own", "libvar without it"),
          ("moves", "others, with redistribution"), ("plain", "others, without")]


def text(x, y, content, size=13, colour=INK, anchor="start", weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
            f'font-weight="{weight}" {FONT}>{html.escape(content)}</text>')


def rectangle(x, y, width, height, colour):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def line(x1, y1, x2, y2, colour, width=1.0, dash=""):
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"{dashes}/>')


def picture(title, height, parts):
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" role="img"><title>{html.escape(title)}</title>')
    return "\n".join([head, rectangle(0, 0, WIDTH, height, "#ffffff"), *parts, "</svg>", ""])


def legend(y, kinds):
    parts, x = [], 20.0
    for kind, name in LEGEND:
        if kind not in kinds:
            continue
        parts += [rectangle(x, y - 10, 12, 12, COLOURS[kind]), text(x + 18, y, name, 12, FAINT)]
        x += 30 + 6.6 * len(name)
    return parts


def duration(us):
    if us < 100:
        return f"{us:.1f} µs"
    return f"{us:.0f} µs" if us < 10000 else f"{us / 1000:.1f} ms"


def bars(title, subtitle, panels):
    """Times as horizontal bars, one panel a case, each panel scaled to its own longest bar. A bar of more than
    LONGEST times the first is cut, with a white gap near its end.

    panels: [(heading, [(name, kind, us)])]; the first entry of a panel is what the others are compared with."""
    parts = [text(20, 30, title, 17, weight="bold"), text(20, 50, subtitle, 12, FAINT)]
    parts += legend(74, {kind for _, rows in panels for _, kind, _ in rows})
    y = 98.0
    for heading, rows in panels:
        parts.append(text(20, y + 6, heading, 14, weight="bold"))
        y += 16
        base = rows[0][2]
        longest = min(max(us for _, _, us in rows), LONGEST * base)
        for name, kind, us in rows:
            weight = "bold" if kind == "libvar" else "normal"
            parts.append(text(LABEL_WIDTH - 8, y + 15, name, 12, anchor="end", weight=weight))
            width = BAR_WIDTH * min(us, longest) / longest
            parts.append(rectangle(LABEL_WIDTH, y + 3, max(width, 1.0), ROW - 6, COLOURS[kind]))
            if us > longest:
                cut = LABEL_WIDTH + width - 18
                parts.append(line(cut - 4, y + ROW - 2, cut + 4, y + 2, "#ffffff", 4.0))
            parts.append(text(LABEL_WIDTH + width + 8, y + 15, duration(us), 12, weight=weight))
            if kind != "libvar":
                times = f"{us / base:.2f}×" if us < 10 * base else f"{us / base:.0f}×"
                parts.append(text(LABEL_WIDTH + width + 75, y + 15, times, 12, FAINT))
            y += ROW
        parts.append(line(LABEL_WIDTH, y - len(rows) * ROW, LABEL_WIDTH, y, INK))
        y += 18
    return picture(title, round(y), parts)


def costs(title, subtitle, rows):
    """Ratios near 1 as points with their intervals, and the bar that each must stay under.

    rows: [(name, ratio, low, high, bar or None, spread)]"""
    low = min([0.95] + [r[2] for r in rows])
    high = max([1.1] + [r[3] for r in rows] + [r[4] + r[5] for r in rows if r[4]])
    low, high = max(low, 0.8) - 0.01, min(high, 1.5) + 0.01
    labels = max(LABEL_WIDTH, 30 + round(6.7 * max(len(r[0]) for r in rows)))  # their width
    span = WIDTH - labels - 130

    def place(value):
        return labels + 20 + span * (min(max(value, low), high) - low) / (high - low)

    parts = [text(20, 30, title, 17, weight="bold"), text(20, 50, subtitle, 12, FAINT)]
    top, bottom = 84, 84 + 30 * len(rows)
    step = 0.05 if high - low <= 0.35 else 0.1
    tick = round(low / step) * step
    while tick <= high:
        if tick >= low:
            parts.append(line(place(tick), top - 8, place(tick), bottom, GRID))
            parts.append(text(place(tick), top - 14, f"{tick:.2f}×", 11, FAINT, "middle"))
        tick += step
    parts.append(line(place(1.0), top - 8, place(1.0), bottom, INK, 1.5))
    y = top
    for name, ratio, below, above, bar, spread in rows:
        parts.append(text(labels - 8, y + 16, name, 12, anchor="end"))
        if bar:
            allowed = bar + spread
            parts.append(rectangle(place(bar), y + 3, max(place(allowed) - place(bar), 0.5), 20, "#fbe3c4"))
            parts.append(line(place(bar), y + 2, place(bar), y + 24, "#e8890c", 2.0))
        parts.append(line(place(below), y + 13, place(above), y + 13, COLOURS["libvar"], 2.0))
        parts.append(f'<circle cx="{place(ratio):.1f}" cy="{y + 13:.1f}" r="5" fill="{COLOURS["libvar"]}"/>')
        parts.append(text(WIDTH - 100, y + 17, f"{ratio:.3f}×", 12, weight="bold"))
        y += 30
    parts.append(text(20, y + 16, "Point: median of the rounds' ratios; line: its 95 % interval; orange: the bar, and "
                      "beyond it what two runs of the same code differ by.", 11, FAINT))
    return picture(title, y + 30, parts)
