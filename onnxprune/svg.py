"""Figures of matplotlib as SVG that takes its colours from the page around it.

matplotlib draws in marker colours, one for each role; in the SVG they become CSS variables, so that one picture is right in a light and
in a dark page. Text stays text. Nothing in it depends on the time, the machine's fonts or a user's settings.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROLES = ("ink", "muted", "grid", "surface", "band", "s0", "s1", "s2", "s3", "s4", "s5")
COLOUR = {role: f"#0f0e{number:02x}" for number, role in enumerate(ROLES)}
"""Role -> the colour that stands for it until the SVG is written; the page's style sheet has a variable of each role's name."""
SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"


def shown(text: str) -> str:
    """The text with what cannot be seen (control characters, changes of direction, halves of surrogate pairs) as its escapes."""
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp") else letter
        for letter in text
    )


@contextlib.contextmanager
def drawing() -> Iterator[type[Figure]]:
    """The class of figures, with matplotlib's own defaults in force whatever the user's are.

    matplotlib is imported here: it takes a third of a second, which most runs can do without.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where the home folder is read-only, and works all the same
    backend = os.environ.pop("MPLBACKEND", None)  # a name that matplotlib does not know would end the import; none is used here
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    finally:
        os.environ.update({} if backend is None else {"MPLBACKEND": backend})

    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name may hold letters that the measuring font lacks
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "onnxprune",
                "text.parse_math": False,
                "font.family": "DejaVu Sans",
                "font.size": 10,
                "axes.edgecolor": COLOUR["grid"],
                "axes.labelcolor": COLOUR["muted"],
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.axisbelow": True,
                "grid.color": COLOUR["grid"],
                "grid.linewidth": 0.7,
                "legend.frameon": False,
                "text.color": COLOUR["ink"],
                "xtick.color": COLOUR["grid"],
                "xtick.labelcolor": COLOUR["muted"],
                "ytick.color": COLOUR["grid"],
                "ytick.labelcolor": COLOUR["ink"],
            }
        )
        yield Figure


def themed(figure: Figure, title: str, description: str, rows: Sequence[tuple[float, float, str]] = ()) -> str:
    """The figure as an SVG element for a page; call it inside `drawing`.

    ``title`` and ``description`` are read out in the picture's place. ``rows`` are (top, height, text) in points: bands over the whole
    width that show their text under the pointer.
    """
    handle = io.BytesIO()
    figure.savefig(handle, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Type", "Format")))
    root = ElementTree.fromstring(handle.getvalue())
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in (f"{SVG}metadata", f"{SVG}style")]:  # that style would hold for the page
            parent.remove(child)
    references = {key for element in root.iter() for value in element.attrib.values() for key in re.findall(r"#([\w-]+)", value)}
    for element in root.iter():
        if element.get("id") not in references:
            element.attrib.pop("id", None)
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        if "style" in element.attrib:
            element.set("style", _style(element.attrib["style"]))
        _hoist(element)
    width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
    for name, value in (("role", "img"), ("aria-label", f"{title}. {description}"), ("class", "chart")):
        root.set(name, value)
    for name in ("version", "width", "height"):
        root.attrib.pop(name, None)
    root.set("style", f"max-width:{1.25 * width:g}px;aspect-ratio:{width:g}/{height:g}")
    for top, tall, text in rows:
        band = ElementTree.SubElement(root, f"{SVG}rect", {"class": "row", "y": f"{top:g}", "width": f"{width:g}", "height": f"{tall:g}"})
        ElementTree.SubElement(band, f"{SVG}title").text = text
    ElementTree.register_namespace("", SVG[1:-1])
    ElementTree.register_namespace("xlink", XLINK[1:-1])
    return ElementTree.tostring(root, encoding="unicode")


def _style(text: str) -> str:
    """A style in which marker colours are variables and the font is the page's."""
    text = re.sub(r"font: (\w+ )?([\d.]+)px [^;]*", lambda found: f"font-size:{found[2]}px", text)
    for role, colour in COLOUR.items():
        text = text.replace(colour, f"var(--{role})")
    return text.replace(": ", ":").replace("; ", ";").rstrip(";")


def _hoist(group: ElementTree.Element[Any]) -> None:
    """Give a group the style that all its marks share, once: with hundreds of layers this is half of the picture."""
    marks = list(group)
    styles = {_style(mark.get("style", "")) for mark in marks}
    if len(marks) > 1 and all(mark.tag == f"{SVG}use" for mark in marks) and len(styles) == 1 and "style" not in group.attrib:
        group.set("style", styles.pop())
        for mark in marks:
            mark.attrib.pop("style", None)
