"""Which page holds what: the page pool, page identities and the prefix index."""
