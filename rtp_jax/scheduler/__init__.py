"""Who advances in the next step; start with `scheduler.py`."""
