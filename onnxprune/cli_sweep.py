"""The command that runs every combination of allocation, sparsity and repair on one model."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from onnxprune import bars
from onnxprune.executing import executor_of, jobs_for
from onnxprune.flags import ALLOCATION, EXECUTOR, FILE, JUDGE, MEMORY, REPAIR, SAMPLES, grid, to_options, with_options, words
from onnxprune.options import ALLOCS, REPAIRS
from onnxprune.regimes import FALLEN, HOLDS


@click.command()
@click.argument("model", type=FILE, metavar="MODEL")
@click.option(
    "--alloc",
    "allocs",
    default="global,erk,lamp",
    show_default=True,
    callback=words,
    metavar="RULE,...",
    help=f"Allocations: {', '.join(ALLOCS)}.",
)
@click.option(
    "--sparsity",
    "sparsities",
    required=True,
    callback=grid,
    metavar="S,... or LOW:HIGH:STEP",
    help="Sparsities, such as 0.9,0.95 or 0.8:0.98:0.02; both ends count.",
)
@click.option(
    "--repair",
    "repairs",
    default="none,bn,channel,asr",
    show_default=True,
    callback=words,
    metavar="RULE,...",
    help=f"Repairs: {', '.join(REPAIRS)}.",
)
@with_options(*REPAIR[1:], *ALLOCATION[1:], *SAMPLES, *MEMORY, JUDGE[0])
@click.option(
    "--labels",
    type=FILE,
    metavar="FILE",
    help="One integer for each sample of --calib, in their order: .npy, .npz or text. Shown, never chosen by.",
)
@click.option("--fallen", default=FALLEN, show_default=True, metavar="A", help="Transition regime: where the agreement of bn is below A,")
@click.option("--holds", default=HOLDS, show_default=True, metavar="A", help="and that of a stronger repair is A or more.")
@with_options(*EXECUTOR)
@click.option("-o", "--output", type=FILE, metavar="FILE.json", help="Write the sweep as JSON.")
@click.option("--csv", "table", type=FILE, metavar="FILE.csv", help="Write its rows as CSV.")
@click.option("--report", "page", type=FILE, metavar="FILE.html", help="Write the sweep as a page.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def sweep(model: Path, calib: tuple[Path, ...], allocs: tuple[str, ...], sparsities: tuple[float, ...], repairs: tuple[str, ...],
          labels: Path | None, fallen: float, holds: float, jobs: int | None, scheduler: str | None, output: Path | None,
          table: Path | None, page: Path | None, force: bool, quiet: bool, **options: Any) -> None:  # fmt: skip
    """Prune MODEL in every combination and compare them, without writing a model.

    Shows the best allocation and repair at each sparsity, and the sparsities
    at which bn fails but a stronger repair holds. Run again after it was
    interrupted, it goes on where it was.

    \b
    Example:  onnxprune sweep model.onnx --sparsity 0.8:0.98:0.02 --calib data/ -o sweep.json
    """
    from onnxprune.resuming import state_of
    from onnxprune.sweep_files import check_targets, sweep_to_files
    from onnxprune.sweeping import Sweep

    asked = Sweep(model, calib, allocs, sparsities, repairs, to_options({**options, "sparsity": 0.0}), labels, fallen, holds)
    check_targets(asked, output, table, page, force=force)
    processes = jobs_for(jobs, scheduler, asked.options.device, len(asked.rows()))
    with executor_of(processes, scheduler) as executor, bars.rows(model.name, quiet=quiet) as tell:
        try:
            report = sweep_to_files(asked, output, table, executor, tell, page, shlex.join(["onnxprune", *sys.argv[1:]]))
        except (KeyboardInterrupt, click.Abort):
            target = output or table or page
            if target is not None and state_of(target).exists():
                click.echo(f"onnxprune: the rows done are kept in {state_of(target)}; run the same command again to go on", err=True)
            raise
    if not quiet:
        from onnxprune import terminal
        from onnxprune.sweep_tables import show_sweep

        show_sweep(terminal.stdout(), report)
