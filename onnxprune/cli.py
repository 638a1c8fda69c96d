"""The command line: every command opens, calls one function and prints.

What one command alone needs is imported in it, and rich where something is drawn: a small model is pruned in two seconds.
"""

from __future__ import annotations

import io
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import click
from click_default_group import DefaultGroup

from onnxprune import __version__, bars
from onnxprune.cli_sweep import sweep
from onnxprune.errors import OnnxpruneError, UsageError
from onnxprune.executing import each, executor_of, jobs_for
from onnxprune.flags import ALLOCATION, EXECUTOR, FILE, JUDGE, MEMORY, REPAIR, SAMPLES, Decorator, one_sparsity, to_options, with_options
from onnxprune.job import plan_jobs, prune_file
from onnxprune.options import Options
from onnxprune.pipeline import plan
from onnxprune.report import Report, to_json


@click.group(
    cls=DefaultGroup,
    default="prune",
    default_if_no_args=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="onnxprune")
def cli() -> None:
    """Prune an ONNX model to high sparsity and repair it from unlabelled samples.

    \b
    onnxprune MODEL... --sparsity 0.95 --calib data/    prune (or: onnxprune prune)
    onnxprune sweep MODEL --sparsity 0.8:0.98:0.02 ...  what suits this model
    onnxprune inspect MODEL                             what can be pruned
    onnxprune compare DENSE PRUNED --calib data/        how near two models are
    """


cli.add_command(sweep)


def command() -> Decorator:
    """cli.command() with a type: DefaultGroup has none."""
    decorator: Decorator = cli.command()
    return decorator


@command()
@click.argument("models", nargs=-1, required=True, type=FILE, metavar="MODEL...")
@click.option(
    "--sparsity",
    callback=one_sparsity,
    metavar="S",
    help="Share of weights to remove, 0 <= S < 1, or auto: the most that keeps --min-agreement. Needed but with --pattern.",
)
@click.option("--pattern", metavar="N:M", help="Keep N of every M weights along the input channels, such as 2:4, in every layer.")
@with_options(*REPAIR, *ALLOCATION, *SAMPLES, *MEMORY, *JUDGE)
@click.option("-o", "--output", type=FILE, metavar="FILE", help="The pruned model; one model only.")
@click.option("--out-dir", type=FILE, metavar="DIR", help="Folder of the pruned models.  [default: beside each model]")
@click.option(
    "--report",
    "reports",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="Write what was done: a page for FILE.html, else JSON; one model only. May repeat.",
)
@click.option("--depfile", type=FILE, metavar="FILE", help="Write the files that were read as a rule for make; one model only.")
@click.option(
    "--sparse-initializers",
    is_flag=True,
    help="Store weights as values and places where that is smaller. ONNX Runtime reads it; many tools do not.",
)
@with_options(*EXECUTOR)
@click.option("--dry-run", is_flag=True, help="Show the allocation and write nothing; error alone needs samples.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Also print what was skipped and what changed in the file.")
def prune(models: tuple[Path, ...], output: Path | None, out_dir: Path | None, reports: tuple[Path, ...], depfile: Path | None,
          dry_run: bool, force: bool, quiet: bool, verbose: bool, calib: tuple[Path, ...], jobs: int | None, scheduler: str | None,
          **options: Any) -> None:  # fmt: skip
    """Prune and repair each MODEL.

    Writes a file of the same stem that ends in .pruned.onnx.

    \b
    Example:  onnxprune model.onnx --alloc erk --sparsity 0.95 --calib data/
    """
    asked = to_options(options)
    if dry_run:
        for path in models:
            _show_plan(path, plan(path, asked, calib or None), quiet=quiet)
        return
    command = shlex.join(["onnxprune", *sys.argv[1:]])
    planned = plan_jobs(list(models), output, out_dir, reports, force=force, depfile=depfile, command=command)
    with executor_of(jobs_for(jobs or (None if scheduler else 1), scheduler, asked.device, len(planned)), scheduler) as executor:
        for job in planned if executor is None else ():
            with bars.progress(job.source.name, quiet=quiet) as tell:
                done = prune_file(job, calib or None, asked, tell)
            _show(done, quiet=quiet, verbose=verbose)
        pieces = [(job, calib or None, asked, bars.silent) for job in planned]
        for number, done in each(prune_file, pieces, executor) if executor is not None else ():
            if not quiet:
                click.echo(f"\n{planned[number].source}")
            _show(done, quiet=quiet, verbose=verbose)


@command()
@click.argument("path", type=FILE, metavar="MODEL")
@click.option("--sparsity", type=float, metavar="S", help="Also show what each layer would keep at this sparsity.")
@with_options(*ALLOCATION)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(path: Path, sparsity: float | None, as_json: bool, **options: Any) -> None:
    """Show what can be pruned in MODEL.

    With --sparsity also what each layer would keep.

    \b
    Example:  onnxprune inspect model.onnx --alloc lamp --sparsity 0.9
    """
    for name, given in options.items():
        if sparsity is None and given and name not in ("alloc", "unfold"):  # these have a default
            raise UsageError(f"--{name.replace('_', '-')} says what is kept at a sparsity; give --sparsity too")
    if sparsity is None:
        from onnxprune import inspecting, listing, terminal

        found = inspecting.find_in(path)
        if as_json:
            click.echo(to_json(inspecting.report_of(found)), nl=False)
        else:
            listing.show_found(terminal.stdout(), path, found)
        return
    report = plan(path, Options(sparsity=sparsity, repair="none", **options))
    if as_json:
        click.echo(to_json(report), nl=False)
    else:
        _show_plan(path, report, quiet=False)


@command()
@click.argument("dense", type=FILE, metavar="DENSE")
@click.argument("pruned", type=FILE, metavar="PRUNED")
@with_options(*SAMPLES)
@click.option(
    "--labels",
    type=FILE,
    metavar="FILE",
    help="Class of every sample, in their order: .npy, .npz or text; gives the top-1 accuracy of both.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(dense: Path, pruned: Path, calib: tuple[Path, ...], labels: Path | None, as_json: bool, **options: Any) -> None:  # fmt: skip
    """Show how near PRUNED is to DENSE.

    Agreement on samples, sparsity of the layers, sizes of the files, latency in ONNX Runtime.

    \b
    Example:  onnxprune compare model.onnx model.pruned.onnx --calib data/
    """
    from onnxprune import comparing, listing, terminal

    if not calib:
        raise UsageError("compare needs samples to run both models on; give --calib PATH")
    with bars.progress(pruned.name, quiet=as_json) as tell:
        found = comparing.compare_files(dense, pruned, calib, to_options({**options, "sparsity": 0.0}), tell, labels)
    if as_json:
        click.echo(to_json(found), nl=False)
    else:
        listing.show_comparison(terminal.stdout(), found)


def _show(report: Report, *, quiet: bool, verbose: bool) -> None:
    """What was done to one model."""
    if not quiet:
        from onnxprune import terminal

        terminal.show(terminal.stdout(), report, verbose=verbose)


def _show_plan(path: Path, report: Report, *, quiet: bool) -> None:
    """The allocation of a dry run."""
    if not quiet:
        from onnxprune import terminal

        terminal.show_plan(terminal.stdout(), path, report)


def main() -> None:
    """The whole command: one line on stderr and the error's exit code, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a layer's name may hold what the terminal cannot show
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # NumPy's, where a model computes infinities
    try:
        cli.main(args=sys.argv[1:] or ["--help"], prog_name="onnxprune", standalone_mode=False)
    except OnnxpruneError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        more = f" (see {context.command_path} --help)" if context is not None else ""
        _fail(f"{error.format_message()}{more}", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; the model in work was not written", 130)
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    except MemoryError:
        _fail("out of memory; give fewer --samples or a smaller --batch-size", 1)


def _fail(text: str, code: int) -> None:
    click.echo(f"onnxprune: error: {' '.join(text.split())}", err=True)
    sys.exit(code)
