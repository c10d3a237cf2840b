"""The command `anban`: one word per chore. Everything heavy is imported by the verb that needs it."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from anban.cli import (
    attention,
    audit,
    check,
    data,
    doctor,
    draw,
    evaluate,
    formulas,
    keys,
    predict,
    profile,
    recipes,
    report,
    run,
    runs,
    stages,
    study,
)
from anban.cli import env as env_verb

app = typer.Typer(
    name="anban",
    help="A workbench for dense-prediction research: change one thing, train, and know whether it helped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing Rich's would double the time of --help
    epilog="Any verb takes --traceback to show where an error comes from.",
)
app.command("recipes")(recipes.recipes)
app.command("show")(recipes.show)
app.command("diff")(recipes.diff)
app.command("check")(check.check)
app.command("run")(run.run)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("study")(study.study)
app.command("report")(report.report)
app.add_typer(runs.app, name="runs")
app.command("profile")(profile.profile)
app.command("stages")(stages.stages)
app.command("draw")(draw.draw)
app.command("attention")(attention.attention)
app.command("keys")(keys.keys)
app.command("formulas")(formulas.formulas)
app.command("doctor")(doctor.doctor)
app.command("data")(data.data)
app.command("audit")(audit.audit)
app.command("env")(env_verb.env)


def main() -> NoReturn:
    """Run the command; turn errors into one message and an exit status (2 bad input, 1 failed, 130 stopped)."""
    arguments = sys.argv[1:]
    traceback = "--traceback" in arguments
    try:
        app(args=_rewrite([a for a in arguments if a != "--traceback"]), standalone_mode=True)
    except Exception as error:
        if traceback:
            raise
        from anban.errors import InputError

        print(f"anban: {error if str(error) else type(error).__name__}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        if isinstance(error, InputError):
            sys.exit(2)
        if type(error).__name__ == "Interrupted":
            print("  do:       --resume goes on from here", file=sys.stderr)
            sys.exit(130)
        if not isinstance(error, OSError):
            print(f"  kind:     {type(error).__name__} (--traceback shows where)", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("anban: stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _rewrite(arguments: list[str]) -> list[str]:
    """Accept what users of other toolboxes type: a bare `--resume`, and `--cfg-options` before key=value."""
    result = []
    for i, argument in enumerate(arguments):
        if argument == "--cfg-options":
            continue
        result.append(argument)
        following = arguments[i + 1] if i + 1 < len(arguments) else "-"
        if (
            argument == "--resume"
            and arguments[0] == "run"
            and (following.startswith("-") or "=" in following)
        ):
            result.append("latest")
    return result


if __name__ == "__main__":
    main()
