"""Settings: frozen, checked when built, unknown keys refused."""
