"""Mistakes a user can mend: one sentence with the remedy, no traceback, exit status 2."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The text names the file, the key, the value and the remedy."""


class Missing(UserError):
    """Something real that is not on this machine and cannot be fetched now; a plan can be made without it."""


class Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP: unwinds like an interrupt from the keyboard, so that files are closed and processes ended."""


def first_line(error: BaseException, most: int = 200) -> str:
    """What another library's error says, as far as it fits into a sentence of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= most else f"{lines[0][:most]}..."


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command line entry point and turn what users can mend into one line on stderr.

    Exit status: 0 done, 2 a mistake to mend, 130 interrupted, 143 ended by SIGTERM and 129 by SIGHUP. Anything else is a defect
    and keeps its traceback.
    """
    with_signals()
    try:
        sys.exit(main() or 0)
    except UserError as error:
        # Names and replies of others may stand in it: nothing in them steers the terminal.
        lines = ["".join(c if c.isprintable() else " " for c in line) for line in str(error).splitlines()]
        print("error: " + "\n".join(lines), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        number = error.args[0] if isinstance(error, Ended) else signal.SIGINT
        told = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        print(f"\n{told}: what is done is kept, the same command goes on from there", file=sys.stderr)
        sys.exit(128 + number)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        remedy = storage_remedy(error)
        if remedy is None:
            raise
        print(f"error: {remedy}", file=sys.stderr)
        sys.exit(2)


def with_signals() -> None:
    """Have SIGTERM and SIGHUP raise `Ended`; what is ignored already, by nohup for one, stays so."""

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once: the second must not cut short what the first unwinds
        raise Ended(number)

    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)


def storage_remedy(error: Exception) -> str | None:
    """A sentence for a full or read-only disk or a name too long, or None where the error is another.

    Not only an OSError says so: safetensors and torch write with errors of their own.
    """
    number = error.errno if isinstance(error, OSError) else None
    where = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
    full = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed", "inline_container.cc")
    if number in (errno.ENOSPC, errno.EDQUOT) or any(text in str(error) for text in full):
        return f"the disk is full{where}; free some space and run the same command again, finished work is kept"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"access is refused{where} (read-only or not permitted); mend its permissions or name another directory: runs=DIR"
        )
    if number == errno.ENAMETOOLONG:
        return f"a name is too long for a file{where[:100]}; shorten it"
    return None


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that memory has run out, a GPU's or the machine's."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
