"""Places for pages below the device, one file each; `tier.py` says what they have in common."""
