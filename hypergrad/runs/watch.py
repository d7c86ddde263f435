"""A small process that outlives this one for a moment: where this one is killed, nobody else could say how to go on."""

import contextlib
import subprocess
import sys

_PROGRAM = "import sys\nif not sys.stdin.read():\n    sys.stderr.write(sys.argv[1] + chr(10))"


class Watch:
    """Prints a line to standard error if this process ends without `close`, also by a signal that it cannot catch.

    MPI's launcher kills all processes of a job once one of them is lost.

    Args: text: the line.
    """

    def __init__(self, text: str) -> None:
        command = [sys.executable, "-S", "-E", "-c", _PROGRAM, text]
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):  # the system gives no process more: then nobody speaks
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)

    def close(self) -> None:
        """Let it end without a word. Cost: some milliseconds."""
        if self._process is not None:
            self._process.communicate(b"closed")
