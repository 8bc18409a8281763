"""How many programs has this thread compiled?  After an engine is ready, the answer stays zero.

jax tells listeners of every compilation, on the thread that compiles; a compilation during serving
means a shape that the lattice lacks, and stalls every request for seconds.
"""

import threading
import weakref

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"


class CompileWatch:
    """Counts what one thread compiles from now on."""

    def __init__(self):
        self.count = 0
        self._thread = threading.get_ident()
        watch = weakref.ref(self)

        def listen(event: str, duration_secs: float, **_: str | int) -> None:
            if event == COMPILED and (alive := watch()) is not None:
                alive._note()

        jax.monitoring.register_event_duration_secs_listener(listen)

    def _note(self) -> None:
        self.count += threading.get_ident() == self._thread
