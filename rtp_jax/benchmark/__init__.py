"""What `rtp-jax bench` measures with: workloads, clients of servers, figures, plots.

Nothing here knows the engine: a server is seen through its wire, gRPC or HTTP.  The commands that
run an engine in this process, `serving/bench_latency.py` and `bench_throughput.py`, borrow the
workloads and the report.
Read `workload.py` for what is asked, `drive.py` for when, `figures.py` for what is made of it.
"""
