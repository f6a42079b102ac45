"""Mistakes a user can mend: one sentence with the remedy, no traceback, exit status 2."""

import errno
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The text names the file, the key, the value and the remedy."""


class Missing(UserError):
    """Something real that is not on this machine and cannot be fetched now; a plan can be made without it."""


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command line entry point and turn what users can mend into one line on stderr.

    Exit status: 0 done, 2 a mistake to mend, 130 interrupted. Anything else is a defect and keeps its traceback.
    """
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        remedy = storage_remedy(error)
        if remedy is None:
            raise
        print(f"error: {remedy}", file=sys.stderr)
        sys.exit(2)


def storage_remedy(error: OSError) -> str | None:
    """A sentence for a full or read-only disk, or None where the error is another."""
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}; free some space and run the same command again, finished work is kept"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"access is refused{where} (read-only or not permitted); mend its permissions or name another directory: runs=DIR"
        )
    return None
