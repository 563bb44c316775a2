"""Started by torchrun on every rank: takes the tuner's requests one after another and answers them.

    harness.py FOLDER BACKEND TIMEOUT_SECONDS
"""

import os
import sys
from pathlib import Path


def main():
    folder, backend, timeout = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    rank = int(os.environ["RANK"])
    # What this rank says goes to a file of its own, from the first line on.
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from optpipe_harness.control import Control

    control = Control(folder, rank)
    control.watch()
    # Nothing of this process is needed once it is served, and destructors of a broken group may hang.
    os._exit(control.guard(lambda: serve(control, backend, timeout)))


def serve(control, backend, timeout):
    from optpipe_harness.serve import serve as serve_requests

    serve_requests(control, backend, timeout)


if __name__ == "__main__":
    main()
