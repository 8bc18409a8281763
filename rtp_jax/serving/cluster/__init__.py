"""Workers and routers of one cluster: what is wanted, who runs it, and what became of it."""
