"""Messages between processes: `.proto` files and the stubs that tools/generate_wire.sh makes."""
