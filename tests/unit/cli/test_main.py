"""The `kvmon` command: listing, loading, and one exit code for every outcome."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from kvmon import errors
from kvmon.cli import main


def kvmon(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "kvmon", *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A verb `fail` that raises what the test puts into the list."""
    raised: list[BaseException] = []

    @click.command("fail")
    def fail() -> None:
        raise raised[0]

    monkeypatch.setattr(main.VerbGroup, "list_commands", lambda self, ctx: ["fail"])
    monkeypatch.setattr(main.VerbGroup, "get_command", lambda self, ctx, name: fail if name == "fail" else None)
    return raised


def test_without_a_verb_the_help_is_printed() -> None:
    """`kvmon` alone prints the same page as `kvmon --help` and succeeds."""
    alone, asked = kvmon(), kvmon("--help")
    assert alone.returncode == asked.returncode == 0
    assert alone.stdout == asked.stdout
    assert "130  interrupted" in alone.stdout


def test_version_is_the_packages() -> None:
    """`kvmon --version` names the version of the package."""
    from kvmon import __version__

    assert kvmon("--version").stdout == f"kvmon {__version__}\n"


def test_help_is_fast() -> None:
    """`kvmon --help` answers within 300 ms; the best of six, because the machine is shared."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        kvmon("--help")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.300


def test_every_listed_verb_loads() -> None:
    """Each verb whose module exists is a click command with the table's help line, and its own --help works."""
    context = click.Context(main.cli)
    for name in main.cli.list_commands(context):
        command = main.cli.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(200) == main.VERBS[name].help
        assert main.run([name, "--help"]) == 0


@pytest.mark.parametrize("verb", ["simulate", "capacity"])
def test_help_stands_under_the_heading_that_names_it(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Options under headings: --help is among the output's, and no heading is left over for it."""
    assert main.run([verb, "--help"]) == 0
    page = capsys.readouterr().out
    assert "--help" in page.partition("\nOutput:\n")[2].partition("\n\n")[0]
    assert "\nOptions:" not in page


def test_a_verb_without_a_module_is_not_listed() -> None:
    """A verb of the table whose module is missing is neither listed nor found."""
    group = main.VerbGroup({"ghost": main.Verb("kvmon.cli.no_such_module:command", "Never.")}, help="", epilog="")
    context = click.Context(group)
    assert group.list_commands(context) == []
    assert group.get_command(context, "ghost") is None


@pytest.mark.parametrize("arguments", [["no-such-verb"], ["--no-such-option"]])
def test_a_wrong_command_line_is_one_line_and_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A usage error names the help to read, in one line."""
    assert main.run(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("kvmon: No such ")
    assert message.endswith("See 'kvmon --help'.\n")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    "verb", [["workload", "-o"], ["fit", "x", "-o"], ["simulate", "x", "--out"], ["capture", "x", "-o"]]
)
def test_a_dash_is_no_file_to_write(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written into a file that is called "-"."""
    assert main.run([*verb, "-"]) == 2
    assert "'-' is no file: give the name of one. See 'kvmon" in capsys.readouterr().err
    assert not Path("-").exists()


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.CaptureError, errors.SystemRefused, errors.InvariantError])
def test_an_error_of_ours_is_one_line_with_its_exit_code(
    kind: type[errors.KvmonError], outcome: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    """A KvmonError ends with its class's exit code and its message on one line."""
    outcome.append(kind("the file is short:\ntry another"))
    assert main.run(["fail"]) == kind.exit_code
    assert capsys.readouterr().err == "kvmon: the file is short: try another\n"


def test_a_bug_is_one_line_that_offers_the_traceback(
    outcome: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    """Any other exception is an internal error with exit code 70; its traceback is shown only when asked for."""
    outcome.append(ZeroDivisionError("division by zero"))
    assert main.run(["fail"]) == 70
    quiet = capsys.readouterr().err
    assert quiet == "kvmon: internal error: ZeroDivisionError: division by zero; set KVMON_DEBUG=1 for the traceback\n"
    assert main.run(["fail"], debug=True) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(outcome: list[BaseException]) -> None:
    """Ctrl-C is no error message, only its exit code."""
    outcome.append(KeyboardInterrupt())
    assert main.run(["fail"]) == 130


@pytest.mark.parametrize("verb", [["--help"], ["metrics"], ["simulate", "--list"]])
def test_a_closed_pipe_is_quiet(verb: list[str]) -> None:
    """When the reader of the output has gone, kvmon says nothing and ends with 141, whoever prints."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = subprocess.run([sys.executable, "-m", "kvmon", *verb], stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_exit_codes_of_the_error_tree_are_documented() -> None:
    """Every exit code that an error class carries stands in the help page and in the README."""
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    for code, meaning in main.EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in readme
    assert {getattr(errors, name).exit_code for name in errors.__all__} <= main.EXIT_CODES.keys()


def test_what_the_machine_refuses_is_one_line(outcome: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    """An error of the operating system that no verb foresaw is still one line, with the code for it."""
    outcome.append(PermissionError(13, "Permission denied", "secret.kvmon"))
    assert main.run(["fail"]) == 4
    said = capsys.readouterr().err
    assert "secret.kvmon" in said
    assert "Permission denied" in said
    assert said.count("\n") == 1


def test_closed_output_is_no_bug() -> None:
    """An answer that is written to a closed stdout is lost, which is an error; a closed stderr changes nothing."""
    command = f'"{sys.executable}" -m kvmon'
    done = subprocess.run(["sh", "-c", f"{command} metrics >&-"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1) and "standard output is closed" in done.stderr
    assert subprocess.run(["sh", "-c", f"{command} verify nowhere 2>&-"], capture_output=True).returncode == 3


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody who may not read the directory")
@pytest.mark.parametrize("verb", [["top", "--once"], ["verify"], ["capture", "-o", "x.kvmon"], ["exporter", "--dir"]])
def test_a_directory_that_may_not_be_read(tmp_path: Path, verb: list[str]) -> None:
    """Another user's recording is refused in one line that says whose it must be, with exit code 4."""
    secret = tmp_path / "secret"
    (secret / "vllm-0").mkdir(parents=True)
    secret.chmod(0o700)
    # the first run imports what the verb needs: afterwards even the interpreter's own library may be out of reach
    code = (
        "import os, sys; from kvmon.cli.main import run; *verb, place = sys.argv[1:]; run([*verb, place + '-absent']); "
        "print('-', file=sys.stderr, flush=True); os.setgroups([]); os.setuid(65534); sys.exit(run([*verb, place]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *verb, str(secret)], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    said = done.stderr.partition("-\n")[2]
    assert done.returncode == 4, done.stderr
    assert "ermission" in said
    assert said.strip().count("\n") == 0
