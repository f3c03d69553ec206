"""Where a role's process writes: the run's logs folder, a file a role.

Ray gives each worker a file of its own, named by a number, in a folder that is removed with the session. A role's
process turns its standard output and error, as descriptors, to a file named after the role: so what C++ and child
processes say goes there too, and a role that is started again writes on below what its earlier self said.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path


def write_to(path: Path) -> None:
    """From now on this process writes its standard output and error to a file, line by line, after what is there.

    Raises:
        OSError: the file cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(file, number)  # the copy is inherited by child processes
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True)
    finally:
        os.close(file)
