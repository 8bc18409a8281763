"""Which worker serves a request: decided here, carried out in `serving/router_service.py`.

Plain Python without I/O, threads or a clock: whoever calls says what time it is, and the same
calls give the same answers, so a simulation of a thousand workers runs the code that serves.
Start with `router.py`.
"""
