"""The program's entry."""

from __future__ import annotations

import gc
import os
import signal


def main() -> None:
    """Run a verb. Ctrl-C while its modules are still being loaded ends it like any program, without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()  # what is imported is no garbage, and looking for some takes a tenth of the start; each verb turns it on again
    # numpy multiplies nothing here that is worth a second thread, and one that finds all cores busy spins for milliseconds.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from app.cli import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
