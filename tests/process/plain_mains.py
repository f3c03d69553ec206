"""A rank that runs a script and nothing else: the counterpart of an observed one."""

import runpy
import sys
from pathlib import Path


def plain(rank, processes, folder, script, arguments):
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    runpy.run_path(script, run_name="__main__")
