"""KV pages between processes: offer, pull, ack, release.

    decode worker                      prefill worker
    peers.py: whom to ask, in turn     kv_service.py: the methods of `KvTransfer`
    pull.py: one request's pages      offers.py: pages under a lease, until they are wanted no more

A page is a `PageRecord`, whatever is in it; which pages move, and when, is decided elsewhere.
"""
