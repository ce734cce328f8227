"""The commands of ``ldro-jax``; what takes long to import is imported by the one that needs it."""

import argparse
import contextlib
import dataclasses
import difflib
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NoReturn

from ldro_jax import shipped
from ldro_jax.runtime import paths, printing, signals

Done = list[str] | None


class _Parser(argparse.ArgumentParser):
    """One whose errors are a line, as those of all else here."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"Error: {message}. {self.prog} --help says more.\n")


def main(argv: Sequence[str]) -> Done:
    """Runs a command.

    Args:
      argv: the name of the command and what follows.

    Returns:
      For ``run`` the flags of the experiment, for :mod:`ldro_jax.main` to run; else ``None``.

    Raises:
      SystemExit: with a line, if something isn't as it must be.
    """
    parser, commands = _parsers()
    if argv[0] not in commands:
        parser.exit(2, f"Error: {_unknown('command', argv[0], commands)}\n")
    # argparse would take one with a space in it for something else.
    bindings = [x for x in argv if argv[0] == "run" and x.startswith("--gin.")]
    args = commands[argv[0]].parse_args([x for x in argv[1:] if x not in bindings])
    if argv[0] != "run":
        # What is saved is read on the host, also while a run has all of an accelerator's memory.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with _errors_in_a_line():
        return args.command(args, bindings)


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="ldro-jax")
    made = parser.add_subparsers()
    commands: dict[str, _Parser] = {}

    def add(command: Callable[..., Done], about: str, *examples: str) -> _Parser:
        name = command.__name__.strip("_")
        commands[name] = made.add_parser(
            name,
            description=about,
            epilog="\n  ".join(["for example:", *examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        commands[name].set_defaults(command=command)
        return commands[name]

    _add_those_that_train(add)
    _add_those_that_read(add)
    return parser, commands


def _add_those_that_train(add: Callable[..., _Parser]) -> None:
    what = add(
        _list,
        "Lists the methods with their formulas, papers and hyperparameters, and the experiments.",
        "ldro-jax list",
        "ldro-jax list experiments",
    )
    what.add_argument("what", nargs="?", choices=["methods", "experiments"], help="only these")

    run = add(
        _run,
        "Trains an experiment and writes its report. Given again, it goes on where it stopped.\n"
        "Gin files are code, which can import and call: run only those that you trust.",
        "ldro-jax run digits",
        "ldro-jax run digits --output_dir=/tmp/digits --set TRAIN_STEPS=200 'SEEDS=(0, 1)'",
        "ldro-jax run yeast --data_dir=/data/public",
    )
    run.add_argument(
        "experiment", metavar="EXPERIMENT", help="a name from 'ldro-jax list', or a gin file"
    )
    run.add_argument(
        "--output_dir", metavar="DIR", help="by default results_local/EXPERIMENT, from here"
    )
    run.add_argument("--data_dir", metavar="DIR", help="where the data set is, if one is needed")
    run.add_argument(
        *("--set", "-s"),
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="anything that gin files set, as they write it; --gin.NAME=VALUE does the same",
    )
    run.add_argument(
        "--overwrite", action="store_true", help="delete what an earlier run left there"
    )
    run.add_argument("--distributed", action="store_true", help="this is one of several processes")

    watch = add(
        _watch,
        "Writes a page of an experiment that trains, again and again until it is finished: how\n"
        "far each run is, and the report so far. It reads what is saved, and changes nothing.",
        "ldro-jax watch /tmp/digits",
        "ldro-jax watch /tmp/digits --every=10 --to=/tmp/page",
    )
    watch.add_argument("output_dir", metavar="OUTPUT_DIR", help="of an experiment that has begun")
    watch.add_argument(
        "--every",
        type=int,
        default=30,
        metavar="SECONDS",
        help="how often it looks, and a browser loads the page again; by default 30",
    )
    watch.add_argument("--to", metavar="DIR", help="where index.html goes; by default a new folder")
    watch.add_argument("--once", action="store_true", help="write the page once")


def _add_those_that_read(add: Callable[..., _Parser]) -> None:
    report = add(
        _report,
        "Writes the report of a finished experiment again, from its results.json.",
        "ldro-jax report /tmp/digits",
        "ldro-jax report /tmp/digits --baseline='Group DRO' --to=/tmp/against_group_dro",
    )
    report.add_argument("--to", metavar="DIR", help="where the report goes; by default there")

    compare = add(
        _compare,
        "Puts the runs of several experiments on the same tasks into one report. Methods of the\n"
        "same name get that of their directory behind theirs.",
        "ldro-jax compare /tmp/small /tmp/large --output_dir=/tmp/small_and_large",
    )
    compare.add_argument(
        "results", nargs="+", metavar="RESULTS", help="an output directory, or a results.json"
    )
    compare.add_argument("--output_dir", required=True, metavar="DIR", help="where it goes")

    evaluate = add(
        _evaluate,
        "Shows, by method and seed, the values of the parameters that are kept, and where they\n"
        "are. They are those that were measured in training: nothing is computed again.",
        "ldro-jax evaluate /tmp/digits",
        "ldro-jax evaluate /tmp/digits --method=L-DRO",
    )
    export = add(
        _export,
        "Writes the parameters of the run that was best on validation as one .npz file, an array\n"
        "for each name such as Dense_0/kernel; numpy.load reads it.",
        "ldro-jax export /tmp/digits",
        "ldro-jax export /tmp/digits --method=L-DRO --seed=0 --file=/tmp/params.npz",
    )
    for each in (report, evaluate, export):
        each.add_argument("output_dir", metavar="OUTPUT_DIR", help="of an experiment")
    for each in (report, compare):
        each.add_argument("--baseline", metavar="METHOD", help="what methods are compared with")
    for each in (evaluate, export):
        each.add_argument("--method", metavar="METHOD", help="only this one")
    export.add_argument("--seed", type=int, metavar="SEED", help="only this one")
    export.add_argument(
        "--file", metavar="FILE", help="by default METHOD-seedSEED-stepSTEP.npz, here"
    )


def _list(args, bindings) -> Done:
    del bindings
    parts = []
    if args.what != "experiments":
        from ldro_jax.weighting import listing

        parts.append(listing.text())
    if args.what != "methods":
        lines = ["experiments, for ldro-jax run"]
        for name, found in shipped.experiments().items():
            data = " (--data_dir)" if found.needs_data else ""
            lines.append(f"  {name}{data}: {found.about}")
        parts.append("\n".join(lines))
    printing.say("\n\n".join(parts))


def _run(args, bindings) -> Done:
    """The flags of the experiment, which has a file of its own or comes with the package."""
    name, known = args.experiment, shipped.experiments()
    is_file = name.endswith(".gin") or os.path.isfile(name)
    if not is_file and name not in known:
        raise ValueError(_unknown("experiment", name, known, hint="'ldro-jax list' has all"))
    for binding in args.set:
        if "=" not in binding:
            raise ValueError(f"--set takes NAME=VALUE, but it is {binding!r}.")
    output_dir = args.output_dir
    if output_dir is None:
        output_dir = os.path.join("results_local", pathlib.PurePath(name).stem)
    flags = {"gin_file": name if is_file else known[name].path, "output_dir": output_dir}
    if args.data_dir is not None:
        flags["data_dir"] = args.data_dir
    switches = [f"--{s}" for s in ("overwrite", "distributed") if getattr(args, s)]
    bindings = [*bindings, *(f"--gin.{binding}" for binding in args.set)]
    return [f"--{k}={v}" for k, v in flags.items()] + switches + bindings


def _watch(args, bindings) -> Done:
    del bindings
    from ldro_jax.records import underway

    try:
        from ldro_jax.reporting import live
    except ImportError as error:
        raise ImportError(
            f"The page needs what can't be imported here ({error}): pip install 'ldro-jax[plots]'."
        ) from error
    if args.every < 1:
        raise ValueError(f"--every must be at least a second, but it is {args.every}.")
    place = _place(args.output_dir)
    underway.check(place)
    if args.to is None:
        target = pathlib.Path(tempfile.mkdtemp(prefix=f"ldro-jax-{place.name}-"))
    else:
        target = paths.absolute(args.to)
        if target == place or place in target.parents:
            raise ValueError(f"--to must be outside of {place}, where nothing else may be written.")
        _check_target("--to", target, "such a page", {"index.html"})
    page = target / "index.html"
    signals.advice = f"The page stays in {page}."
    found, html, before, written = underway.Underway(None, (), False), "", {}, 0.0
    while True:
        # What is moved or deleted while it is read is there the next time, or something newer is.
        with contextlib.suppress(FileNotFoundError):
            stamp = underway.stamp(place)
            if stamp and stamp != before:
                found, before, html = underway.read(place), stamp, ""
        is_gone, now = not place.exists(), time.time()
        if is_over := args.once or is_gone or found.is_finished:
            html = live.render(found, place, now, note="It is gone now." if is_gone else "")
        elif html:
            html = live.at(now, html, written)
        else:
            html = live.render(found, place, now, reload=args.every)
        paths.write(page, html)
        if not written:
            printing.say(f"Look at {page}.")
        written = now
        if is_over:
            break
        time.sleep(args.every)
    if is_gone:
        raise FileNotFoundError(f"{place} is gone. The page shows what was there last.")
    if found.is_finished:
        printing.say("The experiment is finished.")


def _report(args, bindings) -> Done:
    del bindings
    from ldro_jax import reporting

    results = _load(args.output_dir)
    _check_method("--baseline", args.baseline, results)
    there, config_text = _place(args.output_dir), _config_of(args.output_dir)
    target = there if args.to is None else paths.absolute(args.to)
    with tempfile.TemporaryDirectory() as folder:
        page = reporting.write_report(
            results, folder, config_text=config_text, baseline=args.baseline
        )
        titles, old = _titles(page), _titles(target / page.name)
        if lost := [title for title in old if title not in titles]:
            raise ValueError(
                f"The report in {target} has what can't be made from the record alone: "
                f"{', '.join(lost)}. Delete it and give the command that trained, which makes it "
                "again, or choose another place with --to."
            )
        for file in pathlib.Path(folder).rglob("*.*"):
            paths.write(target / file.relative_to(folder), file.read_bytes())
    printing.say(f"Look at {target / page.name}.")


def _compare(args, bindings) -> Done:
    del bindings
    from ldro_jax import reporting
    from ldro_jax.records import joined
    from ldro_jax.records.results import save_results

    target = paths.absolute(args.output_dir)
    names = {"report.html", "results.json", "figures"}
    _check_target("--output_dir", target, "a comparison", names)
    called = [_place(name).name for name in args.results]
    short = len(set(called)) == len(called)
    by_name = dict(zip(called if short else args.results, args.results, strict=True))
    if len(by_name) < 2:
        raise ValueError("There must be two or more different RESULTS to compare.")
    record = joined.join({name: _load(path) for name, path in by_name.items()})
    _check_method("--baseline", args.baseline, record)
    config_text = "\n".join(f"# {k}\n{_config_of(v)}" for k, v in by_name.items())
    page = reporting.write_report(record, target, config_text=config_text, baseline=args.baseline)
    save_results(record, target / "results.json")
    printing.say(reporting.headline_text(record))
    printing.say(f"Look at {page}.")


def _evaluate(args, bindings) -> Done:
    del bindings
    from ldro_jax.records import best

    results = _load(args.output_dir)
    _check_method("--method", args.method, results)
    printing.say(best.table(results, args.method).text())
    printing.say(f"'ldro-jax export {args.output_dir}' writes the best of them to a file.")


def _export(args, bindings) -> Done:
    del bindings
    from ldro_jax.records import arrays, kept

    results = _load(args.output_dir)
    _check_method("--method", args.method, results)
    if args.seed is not None:
        seeds = sorted({run.seed for run in results.runs})
        if args.seed not in seeds:
            raise ValueError(f"There is no seed {args.seed}, but {', '.join(map(str, seeds))}.")
        runs = [run for run in results.runs if run.seed == args.seed]
        results = dataclasses.replace(results, runs=runs)
    best = results.best(args.method)
    by_name = kept.by_name(best.params)
    method = re.sub(r"[^\w.-]+", "_", best.run.method)
    file = args.file or f"{method}-seed{best.run.seed}-step{best.step}.npz"
    arrays.save(by_name, paths.absolute(file))
    for name, array in by_name.items():
        printing.say(f"  {name} {array.dtype} {list(array.shape)}")
    printing.say(f"{best.run.method}, seed {best.run.seed}, step {best.step}, is in {file}.")


def _place(output_dir: str) -> pathlib.Path:
    """The directory of an experiment, of which the results.json may be named."""
    if not output_dir.strip():
        raise ValueError("OUTPUT_DIR is empty. Is it a variable that isn't set?")
    path = paths.absolute(output_dir)
    return path.parent if path.name.endswith(".json") else path


def _load(output_dir: str):
    from ldro_jax.records.results import load_results

    place = _place(output_dir)
    named = paths.absolute(output_dir)
    file = named if named != place else place / "results.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{place} has no {file.name}. Name the output directory of a finished experiment."
        )
    return load_results(file)


def _config_of(output_dir: str) -> str:
    file = _place(output_dir) / "config.gin"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _titles(page: pathlib.Path) -> list[str]:
    """The titles of a report's sections, if it is there."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    return re.findall(r"^<h2>(.*)</h2>$", text, re.MULTILINE)


def _check_target(option: str, target: pathlib.Path, what: str, names: Collection[str]) -> None:
    """Raises ``FileExistsError`` if a folder has others than files of these names."""
    there = [file.name for file in target.iterdir()] if target.is_dir() else []
    there = {name for name in there if not name.startswith(paths.TEMPORARY)}
    if target.is_file() or there - set(names):
        raise FileExistsError(
            f"{target} holds something else than {what}. Choose another {option}."
        )


def _check_method(option: str, name: str | None, results) -> None:
    from ldro_jax.records import relative

    methods = dict.fromkeys(run.method for run in results.runs)
    labels = relative.groups(results.runs) if option == "--baseline" else ()
    if name is not None and name not in (*methods, *labels):
        hint = f"there are {', '.join(methods)}"
        raise ValueError(f"{option}: {_unknown('method', name, methods, hint=hint)}")


def _unknown(what: str, name: str, known: Collection[str], hint: str = "") -> str:
    """An error in a line that says what is nearest, or else the hint, or all that there is."""
    lower = {each.lower(): each for each in known}
    near = [lower[each] for each in difflib.get_close_matches(name.lower(), lower)]
    hint = hint or f"there are {', '.join(known)}"
    said = f"Did you mean {' or '.join(near)}?" if near else f"{hint[0].upper()}{hint[1:]}."
    return f"There is no {what} {name!r}. {said}"


@contextlib.contextmanager
def _errors_in_a_line() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("LDRO_JAX_TRACEBACK"):
            raise
        sys.exit(f"Error: {error}")
