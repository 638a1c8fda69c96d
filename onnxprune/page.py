"""Reports as pages: one HTML file with its charts, its style and its script inside, which asks the network for nothing.

Layer names and everything else that comes from a model or a command line is text, never markup: the templates escape it, and
`svg.shown` makes visible what would be invisible.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from onnxprune import plots
from onnxprune.plots import Change
from onnxprune.report import LayerReport, Report, not_judged
from onnxprune.sizes import readable
from onnxprune.svg import shown
from onnxprune.sweep_report import SweepReport

if TYPE_CHECKING:
    from jinja2 import Environment


def prune_page(report: Report, allocations: Mapping[str, Sequence[int]] = {}, command: str = "") -> str:
    """The page of one run.

    ``allocations``: name of another allocation -> how many weights each layer of the report would keep under it. ``command`` is the
    command line, shown as it is.
    """
    rule = str(report.options["pattern"] or report.options["alloc"])
    others = {name: _densities(report, kept) for name, kept in allocations.items() if name != rule}
    return _rendered(
        "prune.html",
        report=report,
        name=PurePath(report.input.path).name if report.input else "model",
        repaired_at_all=report.options["repair"] != "none",
        command=command,
        rule=rule,
        others=others,
        charts=[plots.density_chart(
            [entry.name for entry in report.layers],
            [entry.density for entry in report.layers],
            [entry.pruned for entry in report.layers],
            rule,
            others,
        ), *_changes(report.layers)],
        reason="" if report.agreement else not_judged(report),
        phases=_phases(report.seconds),
        repaired=[entry for entry in report.layers if entry.variance_error_before is not None or entry.relative_error_before is not None],
    )  # fmt: skip


def sweep_page(sweep: SweepReport, command: str = "") -> str:
    """The page of a sweep; ``command`` is the command line, shown as it is."""
    allocs = list(dict.fromkeys(row.alloc for row in sweep.rows))
    return _rendered(
        "sweep.html",
        sweep=sweep,
        name=PurePath(sweep.model).name,
        command=command,
        charts={alloc: plots.sweep_chart(sweep, alloc) for alloc in allocs},
        repairs=list(dict.fromkeys(row.repair for row in sweep.rows)),
        asked=list(dict.fromkeys(row.sparsity_asked for row in sweep.rows)),
        best={(entry.sparsity_asked, entry.alloc, entry.repair) for entry in sweep.best},
        failed=[row for row in sweep.rows if row.error is not None],
    )


def _densities(report: Report, kept: Sequence[int]) -> list[float]:
    return [count / entry.weights if entry.weights else 1.0 for entry, count in zip(report.layers, kept, strict=True)]


def _changes(layers: Sequence[LayerReport]) -> list[str]:
    """The charts of what the repair changed: the error that it reduces, and the ratio of variances; none where nothing was repaired."""
    names = [entry.name for entry in layers]
    solved = [Change(entry.relative_error_before, entry.relative_error_after) for entry in layers]
    errors = [Change(entry.variance_error_before, entry.variance_error_after) for entry in layers]
    ratios = [Change(entry.variance_ratio_before, entry.variance_ratio_after) for entry in layers]
    charts = []
    if any(change.before is not None for change in solved):
        charts.append(plots.change_chart(names, solved, "Relative error by layer", ratio=False))
    elif any(change.before is not None for change in errors):
        charts.append(plots.change_chart(names, errors, "Variance error by layer", ratio=False))
    if any(change.before is not None for change in ratios):
        charts.append(plots.change_chart(names, ratios, "Variance ratio by layer", ratio=True))
    return charts


def _phases(seconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """(phase, seconds, share of the longest), without the total."""
    phases = [(name, value) for name, value in seconds.items() if name != "total"]
    longest = max((value for _, value in phases), default=0) or 1
    return [(name, value, value / longest) for name, value in phases]


def _rendered(template: str, **values: Any) -> str:
    """A template filled in; its script runs by its hash alone, so that no other would."""
    environment = _environment()
    loader = environment.loader
    assert loader is not None
    style, script = (loader.get_source(environment, name)[0] for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(style=style, script=script, digest=digest, **values)


@cache
def _environment() -> Environment:
    """The templates beside this module; jinja2 is imported here, for most runs need no page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("onnxprune"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=_count, bytes=readable, percent=_percent, number=_number, plain=_plain, sortable=_sortable)
    return environment


def _visible(value: Any) -> Any:
    """What an expression of a template puts on the page."""
    return shown(value) if type(value) is str else value


def _count(value: int) -> str:
    return f"{value:,}"


def _percent(value: float, form: str = ".2f") -> str:
    return f"{100 * value:{form}} %"


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def _sortable(value: float | None) -> str:
    """A number as the script of the page reads it."""
    return "" if value is None else str(value).replace("inf", "Infinity")


def _plain(value: Any) -> str:
    """An option's value as a person writes it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items() if entry is not None) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    if value is None:
        return "none"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
