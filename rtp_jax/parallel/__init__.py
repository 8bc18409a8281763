"""How arrays are spread over devices."""
