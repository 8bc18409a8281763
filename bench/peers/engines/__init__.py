"""One file for each engine: how it is started and asked, for `bench.peers.worker`."""
