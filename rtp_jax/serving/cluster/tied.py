"""A command of `rtp-jax` whose life is tied to who started it:  python -m ... serve MODEL ...

Standard input is a pipe that the starter keeps open.  When it closes, however the starter ended,
this process drains and ends as on SIGTERM.  So nothing that a controller or an actor started is
left behind, and what it was doing is finished.  A starter that has sent SIGTERM itself says so with
a byte in the pipe: a second one would end at once what drains.
"""

import os
import signal
import sys
import threading
import time

from rtp_jax.serving.main import main

LONGEST_DRAIN_S = 600.0


def watch(stdin: int) -> None:
    """Wait for the pipe to close, then send ourselves SIGTERM, if nobody has sent one."""
    drains = False
    while os.read(stdin, 1):
        drains = True
    if not drains:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LONGEST_DRAIN_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=watch, args=(sys.stdin.fileno(),), daemon=True).start()
    sys.exit(main())
