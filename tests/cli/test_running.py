"""How a command ends: faults of libraries and of ours, signals, names that a terminal cannot show, closed pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zlib
from typing import Any

import pytest
import torch
from command_line import run

from leace_fast import doctor
from leace_fast.cli import _doctor

PROGRAM = "from leace_fast.cli import app; app()"


def raising(monkeypatch: pytest.MonkeyPatch, act: Any) -> Any:
    """Run a command that does something in the place of its work."""
    monkeypatch.setattr(doctor, "examine", lambda: act())
    return run("doctor")


LIBRARY_FAULTS = {
    "IndexError": lambda: torch.nn.functional.embedding(torch.tensor([7]), torch.ones(2, 2)),
    "RuntimeError": lambda: torch.ones(2, 3) @ torch.ones(2, 3),
    "error": lambda: zlib.decompress(b"noise"),
    "JSONDecodeError": lambda: json.loads("{"),
    "RecursionError": lambda: json.loads("[" * 100_000),
    "OSError": lambda: os.listdir("/nowhere/at/all"),
    "MemoryError": lambda: bytearray(2**62),
    "KeyError": lambda: os.environ["NOT_SET_ANYWHERE"],
}


@pytest.mark.parametrize("kind", LIBRARY_FAULTS)
def test_what_libraries_raise_is_one_line(monkeypatch, kind):
    result = raising(monkeypatch, LIBRARY_FAULTS[kind])
    (line,) = result.stderr.strip().splitlines()
    assert result.exit_code == 2 and line.startswith("error: ") and len(line) < 700, result.output
    if kind == "KeyError":
        assert "KeyError: 'NOT_SET_ANYWHERE' (raised in " in line and "LEACE_FAST_DEBUG=1" in line


def test_a_fault_of_ours_says_where_to_report_it(monkeypatch):
    def fault() -> None:
        exec(compile("{}['a']", _doctor.__file__, "exec"))

    result = raising(monkeypatch, fault)
    (line,) = result.stderr.strip().splitlines()
    assert result.exit_code == 1 and line.startswith("error: KeyError: 'a': a fault of leace-fast; LEACE_FAST_DEBUG=1")
    assert line.endswith("/issues")


def test_long_messages_are_cut(monkeypatch):
    def fault() -> None:
        raise ValueError("what came: " + "x" * 10_000)

    (line,) = raising(monkeypatch, fault).stderr.strip().splitlines()
    assert line.startswith("error: what came: xxx") and line.endswith("...") and len(line) < 700


@pytest.mark.parametrize(("number", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_signals_end_a_command_with_one_line(monkeypatch, number, code, word):
    def wait() -> None:
        os.kill(os.getpid(), getattr(signal, number))
        for _ in range(10**6):  # where Python looks for signals
            pass
        raise AssertionError("the signal did not come")

    before, interrupt = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without
    try:
        result = raising(monkeypatch, wait)
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert result.exit_code == code and result.stderr.strip() == word, (result.output, result.exception)
    assert signal.getsignal(signal.SIGTERM) is before


def test_nobody_who_reads_is_no_error(monkeypatch):
    def write() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    result = raising(monkeypatch, write)
    assert result.exit_code == 141 and not result.output


def started(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments], **options)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path, encoding):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "label": "\N{SNOWMAN}"}))
    (tmp_path / "config.json").write_text("{}")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "TERM": "dumb"}
    arguments = ["scrub", str(tmp_path), "--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]
    done = started(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 2 and b"holds only the class '" in done.stderr and b"Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and (encoding == "ascii" or b"'\\u2603'" in done.stderr)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file like /dev/full: on Linux")
@pytest.mark.parametrize("arguments", [["doctor", "--json"], ["--help"]])
def test_output_that_cannot_be_written_is_an_error_and_a_closed_pipe_is_none(arguments):
    with open("/dev/full", "wb") as full:
        done = started(arguments, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2 and done.stderr.strip().splitlines() == [b"error: [Errno 28] No space left on device"]
    reads, writes = os.pipe()
    os.close(reads)
    done = started(arguments, stdout=writes, stderr=subprocess.PIPE)
    os.close(writes)
    assert done.returncode in (1, 141) and not done.stderr, done.stderr
