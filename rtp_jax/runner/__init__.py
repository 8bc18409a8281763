"""The plan, executed: all device state lives here."""
