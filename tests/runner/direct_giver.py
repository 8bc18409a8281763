"""A process that gives arrays by jax's transfer server, and does what its standard input says.

    give ID BYTES SECONDS | sweep | renew | memory

Bytes are all ID modulo 251; each line is answered by one.
"""

import sys
from pathlib import Path

from rtp_jax.runner.direct_server import JaxEnd

MIB = 1 << 20


def main() -> None:
    """Answer lines until there are none."""
    end = JaxEnd("127.0.0.2")  # as if on another machine
    print(end.give(1, [b"0"], 0.0), flush=True)
    for line in sys.stdin:
        what, *rest = line.split()
        answer = "done"
        if what == "give":
            array_id, size = int(rest[0]), int(rest[1])
            port = end.give(array_id, [bytes([array_id % 251]) * size], float(rest[2]))
            answer = str(port)
        elif what == "sweep":
            end.sweep()
        elif what == "renew":
            end.renew()
        else:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            answer = str(pages * 4096 // MIB)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
