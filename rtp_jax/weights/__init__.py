"""How a checkpoint reaches the devices: read `table.py`, `safetensors.py`, `loader.py`."""
