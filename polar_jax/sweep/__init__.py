"""Sweeps: many configurations from one TOML file, resumed at will, with fits and a report."""
