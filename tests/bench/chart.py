"""The figures as bars, in SVG: CPU a whole answer, a stream and an event, by gateway."""

from __future__ import annotations

from xml.sax.saxutils import escape

from figures import GATEWAYS, KINDS, OWN, Figures, shown

PANELS = ("whole", "stream", "paced")
NAME_WIDTH, BAR_WIDTH, VALUE_WIDTH, LINE, MARGIN = 150, 380, 70, 22, 12
OWN_COLOUR, COLOUR = "#0b6e99", "#9db4c0"
STYLE = "font: 13px sans-serif; fill: #333"


def svg(figures: Figures, caption: str) -> str:
    """One panel a figure; a bar of ours has a colour of its own."""
    parts: list[str] = []
    top = MARGIN
    for kind in PANELS:
        top = _panel(parts, figures, kind, top) + LINE
    parts.append(f'<text x="{MARGIN}" y="{top}" style="{STYLE}; font-size: 11px">{escape(caption)}</text>')
    width, height = NAME_WIDTH + BAR_WIDTH + VALUE_WIDTH + 2 * MARGIN, top + MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>\n"])


def _panel(parts: list[str], figures: Figures, kind: str, top: int) -> int:
    """Draw one figure of all gateways from a height on; where it ends."""
    values = {name: value for name in GATEWAYS if (value := figures.median(name, kind)) is not None}
    title = f"{KINDS[kind].title}: {KINDS[kind].unit} of CPU"
    parts.append(f'<text x="{MARGIN}" y="{top + 14}" style="{STYLE}; font-weight: bold">{escape(title)}</text>')
    top += LINE
    largest = max(values.values(), default=1)
    for name, value in values.items():
        length = max(1, round(BAR_WIDTH * value / largest))
        colour = OWN_COLOUR if name.startswith(OWN) else COLOUR
        left = MARGIN + NAME_WIDTH
        parts.append(f'<text x="{left - 8}" y="{top + 14}" text-anchor="end" style="{STYLE}">{escape(name)}</text>')
        parts.append(f'<rect x="{left}" y="{top + 2}" width="{length}" height="{LINE - 6}" fill="{colour}"/>')
        amount = shown(value, KINDS[kind].digits)
        parts.append(f'<text x="{left + length + 6}" y="{top + 14}" style="{STYLE}">{amount}</text>')
        top += LINE
    return top
