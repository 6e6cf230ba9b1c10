"""Command lines: manuals, both spellings of a flag, and errors in one line."""

import subprocess
import sys

import pytest

from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime import cli

MANUAL = """Does
    something.

    A paragraph whose lines the source has wrapped at some place, and which is
    wrapped anew.

        python -m example --one=1
        python -m example --two=2
    """


def test_help_keeps_paragraphs_and_commands(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = cli.Parser("example", "", MANUAL).format_help()
    assert "\n\nA paragraph whose lines the source has wrapped at some\n" in text
    assert "\n\n    python -m example --one=1\n    python -m example --two=2\n\n" in text


@pytest.mark.parametrize("flag", ["--image_size", "--image-size"])
def test_a_flag_of_two_words_has_two_spellings(flag):
    parser = cli.Parser("example", "", None)
    parser.add_argument("--image_size", type=int)
    assert parser.parse_args([f"{flag}=8"]).image_size == 8


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageError("a\nb"), 2), (RunError("a b"), 1), (OSError("a b"), 1)],
)
def test_an_error_is_one_line_and_a_code(error, code, capsys):
    @cli.one_line_errors
    def program(argv: list[str]) -> int:
        raise error

    assert program([]) == code
    assert capsys.readouterr().err == "error: a b\n"


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_enough_ends_the_program_without_a_word(lines):
    code = (
        "import sys; from selfloop_jax.runtime.cli import one_line_errors;"
        f"program = one_line_errors(lambda: print('line\\n' * {lines}) or 0); sys.exit(program())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
    process.stderr.close()


def test_another_pipe_that_breaks_is_an_error():
    code = (
        "import sys; from selfloop_jax.runtime.cli import one_line_errors\n"
        "@one_line_errors\n"
        "def program(): raise BrokenPipeError(32, 'Broken pipe')\n"
        "sys.exit(program())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 32] Broken pipe\n")


def test_what_else_is_raised_is_a_fault_of_the_program():
    @cli.one_line_errors
    def program() -> int:
        raise KeyError

    with pytest.raises(KeyError):
        program()
