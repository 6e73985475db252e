"""The command line: list, show, run, compare, reproduce, eval, doctor, report."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from redistill.core.stopping import Interrupted, Stop
from redistill.errors import UserError, nearest
from redistill.evaluation.compare_command import add_compare, compare_command

if TYPE_CHECKING:
    from redistill.core.loop import Run


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one sentence, exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Turn an argparse error into a UserError."""
        raise UserError(f"{message} (see `{self.prog} --help`)")


def parser(slug: str | None = None) -> Parser:
    """The whole command line; the help of `run` tells the settings of method `slug` where one is named."""
    top = Parser(prog="redistill", description="Post-training in which the teacher is often the model itself.")
    verbs = top.add_subparsers(dest="verb", metavar="COMMAND")

    one = verbs.add_parser("list", help="every method: slug, family, paper, marks")
    one.add_argument("--json", action="store_true", help="print JSON only")
    one.add_argument(
        "--taxonomy", action="store_true", help="the survey's table: signal, access, granularity, divergence"
    )

    one = verbs.add_parser("show", help="a method: idea, objective, options, paper-says/code-does, evidence")
    one.add_argument("slug", help="a method of `redistill list`")
    one.add_argument("--json", action="store_true", help="print JSON only")

    _add_run(verbs, slug)
    add_compare(verbs)

    one = verbs.add_parser("reproduce", help="the paper's direction against its own baseline; writes evidence/<slug>/")
    one.add_argument("slug")
    one.add_argument("--seeds", default=None, help="comma-separated (default 0,1,2)")
    one.add_argument("--quick", action="store_true", help="a smaller version, for CI; writes to --out only")
    one.add_argument("--model", help="the model, where there are experiments on several (default: the first)")
    one.add_argument("--out", type=Path, default=None, help="folder of the evidence (default: evidence/<slug>)")

    one = verbs.add_parser("eval", help="evaluate a saved model or a run")
    one.add_argument("target", help="run folder, model folder or model name")
    one.add_argument("--task", help="task (default: the run's own)")
    one.add_argument("-k", type=int, default=0, help="also sample k answers a prompt: avg@k and pass@k")
    one.add_argument("--prompts", type=int, default=None, help="held-out prompts (default 100)")
    one.add_argument(
        "--also", action="append", default=[], metavar="TASK", help="another task: what was forgotten there?"
    )
    one.add_argument("--base", help="the model to compare with (with --also: the run's own start)")
    one.add_argument("--html", type=Path, help="also write a page: reliability diagram, pass@k, differences")
    one.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="run settings, e.g. max_new_tokens=32"
    )
    one.add_argument("--json", action="store_true", help="print JSON only")

    one = verbs.add_parser(
        "doctor", help="pre-flight: do student and teachers agree, is there room, are packages right"
    )
    one.add_argument("target", nargs="?", help="a recipe, a .toml file or a method")
    for key, meaning in (("task", "task"), ("model", "model name, folder or hub id"), ("steps", "updates")):
        one.add_argument(f"--{key}", help=meaning)
    one.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the run or the method"
    )
    one.add_argument("--json", action="store_true", help="print JSON only")

    one = verbs.add_parser("report", help="the page of a run: curves, evaluations, the credit of every token")
    one.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    one.add_argument("--out", type=Path, help="the page (default: RUN/report.html)")
    one.add_argument("--json", action="store_true", help="print the run's facts as JSON only; the page is written too")
    return top


def _add_run(verbs: Any, slug: str | None) -> None:
    """The verb that trains."""
    one = verbs.add_parser(
        "run", help="train", epilog=_settings_help(slug), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    one.add_argument("slug", nargs="?", help="a method; may be left out with --recipe")
    one.add_argument("--recipe", help="a shipped recipe by name, or a .toml file")
    for key, meaning in (
        ("task", "task, e.g. chain_sum:min_terms=2,max_terms=4"),
        ("model", "model name, folder or hub id"),
    ):
        one.add_argument(f"--{key}", help=meaning)
    one.add_argument("--seed", help="seed of prompts and samples")
    one.add_argument("--steps", help="updates")
    one.add_argument("--out", type=Path, help="run folder (default: runs/<method>-<task>-s<seed>-<time>)")
    one.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the run or the method"
    )
    one.add_argument(
        "--unsafe-exec", action="store_true", help="run model-written programs of a code task without a jail"
    )
    one.add_argument("--resume", action="store_true", help="continue the run in --out from its newest good checkpoint")
    one.add_argument("--quiet", action="store_true", help="plain lines instead of a progress bar")
    one.add_argument("--json", action="store_true", help="print the result as JSON only")


def _settings_help(slug: str | None) -> str:
    """The settings of a run, with their ranges; for a method those of its domain, with the paper's values, and its own."""
    from redistill.core.options import options_of
    from redistill.text.settings import Settings

    if slug is None:
        title = "settings of a language run (--set key=value); `redistill run SLUG --help` has those of any method:"
        parts: list[tuple[str, type, dict[str, Any]]] = [(title, Settings, {})]
    else:
        from redistill.build import method_class, settings_class

        cls = method_class(slug)
        parts = [(f"settings of a run of {slug} (--set key=value):", settings_class(cls), dict(cls.run_defaults))]
        parts.append((f"options of {slug} (--set key=value; more in `redistill show {slug}`):", cls, {}))
    lines: list[str] = []
    for title, kind, own in parts:
        lines += ["", title] if lines else [title]
        for spec in options_of(kind).values():
            bounds = f" [{spec.range}]" if spec.range else ""
            lines.append(f"  {spec.name} = {own.get(spec.name, spec.default)}{bounds}: {spec.meaning}")
    return "\n".join(lines).replace("%", "%%")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0: the work was done; 2: a user's mistake, told in one sentence on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        known = list(_VERBS)
        if words and not words[0].startswith("-") and words[0] not in known:
            raise UserError(f"command {words[0]!r} is unknown{nearest(words[0], known)}")
        asked = words[:1] == ["run"] and {"-h", "--help"} & set(words)
        named = [word for word in words[1:2] if asked and not word.startswith("-")]
        arguments = parser(*named).parse_args(words)
        if arguments.verb is None:
            parser().print_help()
            return 0
        arguments.words = words
        status = int(_VERBS[arguments.verb](arguments) or 0)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever reads our output has enough (`| head`); what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        print(f"redistill: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("redistill: interrupted", file=sys.stderr)
        return 130


def _list(arguments: argparse.Namespace) -> int:
    from redistill.catalogue import rows
    from redistill.reporting.terminal import print_table, print_taxonomy
    from redistill.taxonomy import taxonomy

    found = taxonomy() if arguments.taxonomy else rows()
    if arguments.json:
        print(json.dumps(found, indent=1))
    elif arguments.taxonomy:
        print_taxonomy(found)
    else:
        print_table(found)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from redistill.catalogue import describe
    from redistill.reporting.terminal import print_method

    facts = describe(arguments.slug)
    if arguments.json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        print_method(facts)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from redistill.build import prepare
    from redistill.config import load_recipe, parse_pairs
    from redistill.reporting.terminal import reporter
    from redistill.tasks.loading import unsafe

    given: dict[str, Any] = {}
    slug = arguments.slug
    if arguments.recipe:
        recipe = load_recipe(arguments.recipe)
        if slug not in (None, recipe.method):
            raise UserError(f"recipe {arguments.recipe!r} is of method {recipe.method!r}, not {slug!r}")
        slug = recipe.method
        given = {**recipe.run, **recipe.options}
    if slug is None:
        raise UserError("name a method (`redistill list`) or a --recipe")
    given |= {
        key: getattr(arguments, key)
        for key in ("task", "model", "seed", "steps")
        if getattr(arguments, key) is not None
    }
    pairs = parse_pairs(arguments.set)
    for key in set(pairs) & {key for key in ("task", "model", "seed", "steps") if getattr(arguments, key) is not None}:
        raise UserError(f"{key} is given twice: by --{key} and by --set")
    if arguments.unsafe_exec:
        pairs["task"] = unsafe(pairs.get("task", given.pop("task", None)))
    if arguments.resume and arguments.out is None:
        raise UserError("--resume needs --out, the folder of the run to continue")
    report = reporter(quiet=arguments.quiet, silent=arguments.json)
    command = "redistill " + shlex.join(arguments.words)
    stop = Stop()
    run: Run | None = None
    try:
        with stop.listening():
            run = prepare(
                slug, {**given, **pairs}, out=arguments.out, resume=arguments.resume, report=report, command=command,
                stop=stop,
            )  # fmt: skip
            result = run.go(arguments.resume)
    except (Interrupted, KeyboardInterrupt) as broken_off:
        print(f"redistill: {_how_to_go_on(broken_off, run, arguments.words)}", file=sys.stderr)
        return stop.status
    finally:
        if run is not None:
            run.close()
        report("close", {})
    if arguments.json:
        print(json.dumps({**result, "folder": str(run.folder.path)}))
    return 0


def _how_to_go_on(broken_off: BaseException, run: Run | None, words: Sequence[str]) -> str:
    """What a stopped run has saved, and the command that continues it."""
    if run is None:
        return f"stopped by {broken_off or 'Ctrl-C'} before the run began; the same command starts it again"
    again = [*words, *([] if "--resume" in words else ["--resume"])]
    if not any(word == "--out" or word.startswith("--out=") for word in words):
        again += ["--out", str(run.folder.path)]
    if isinstance(broken_off, Interrupted):
        kept = f"{broken_off.checkpoint} is saved" if broken_off.checkpoint else "there was nothing to save yet"
        told = f"stopped by {broken_off} after step {run.cursor.step}; {kept}"
    else:
        from redistill.core.state import newest_good

        newest = newest_good(run.folder.checkpoints)[0]
        told = f"stopped at once; {f'{newest} is intact' if newest else 'there was no checkpoint yet'}"
    return f"{told}; continue with `redistill {shlex.join(again)}`"


def _reproduce(arguments: argparse.Namespace) -> int:
    from redistill.evaluation.reproduce import reproduce

    try:
        seeds = [int(seed) for seed in (arguments.seeds or "0,1,2").split(",")]
    except ValueError:
        raise UserError(f"--seeds {arguments.seeds!r} is not a comma-separated list of whole numbers") from None
    reproduce(arguments.slug, seeds=seeds, quick=arguments.quick, model=arguments.model, out=arguments.out)
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from redistill.config import parse_pairs
    from redistill.evaluation.saved import evaluate_saved
    from redistill.reporting.terminal import print_evaluation

    result = evaluate_saved(
        arguments.target, arguments.task, arguments.k, arguments.prompts, parse_pairs(arguments.set), arguments.also,
        arguments.base,
    )  # fmt: skip
    if arguments.html is not None:
        from redistill.reporting.evaluation_page import evaluation_page

        evaluation_page(result).write(arguments.html)
    if arguments.json:
        print(json.dumps(result))
    else:
        print_evaluation(result)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from redistill.config import parse_pairs
    from redistill.doctor import examine, lines

    given = {key: getattr(arguments, key) for key in ("task", "model", "steps") if getattr(arguments, key) is not None}
    report = examine(arguments.target, {**given, **parse_pairs(arguments.set)})
    print(json.dumps(report) if arguments.json else "\n".join(lines(report)))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from redistill.reporting.run_page import report

    found = report(arguments.runs, arguments.out)
    if arguments.json:
        print(json.dumps(found[0] if len(found) == 1 else found, ensure_ascii=False))
    else:
        print("\n".join(f"{one['outcome']}\npage: {one['page']} ({one['bytes'] / 1e6:.1f} MB)" for one in found))
    return 0


_VERBS = {
    "list": _list,
    "show": _show,
    "run": _run,
    "compare": compare_command,
    "reproduce": _reproduce,
    "eval": _eval,
    "doctor": _doctor,
    "report": _report,
}


if __name__ == "__main__":
    sys.exit(main())
