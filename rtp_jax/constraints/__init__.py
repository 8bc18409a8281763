"""Which tokens a sequence may produce next."""
