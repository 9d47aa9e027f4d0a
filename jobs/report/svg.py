"""A matplotlib figure as an inline `<svg>` that follows the page: its theme, its font, its width."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from longtake.jobs.plots.base import INKS, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def inline(figure: Figure, name: str, title: str) -> Markup:
    """The figure as SVG: colours are CSS variables, text is text; ids begin with `name` (unique)."""
    import matplotlib

    buffer = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with styled(), matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", text)
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--font)", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
    for color, ink in INKS.items():
        text = text.replace(color, f"var(--{ink})")
    width, height = (float(inches) * 72 for inches in figure.get_size_inches())
    opening = (
        f'<svg class="plot" role="img" aria-label="{escape(title)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="width:{width:g}px" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return Markup(opening + text[text.index(">") + 1 :])
