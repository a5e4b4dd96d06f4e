"""`python skewed.py FILE ARGUMENT…`: our program, with a time of day that is off by as many seconds as FILE says.

A library that does the same below Python (libfaketime) breaks `time.sleep` of Python 3.11.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path

right = time.time


def skewed() -> float:
    return right() + float(clock.read_text() or 0)


if __name__ == "__main__":
    clock = Path(sys.argv.pop(1))
    time.time = skewed  # before anything of ours is imported
    runpy.run_module("app", run_name="__main__", alter_sys=True)
