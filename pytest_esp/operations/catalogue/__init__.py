"""Espressif's chips and modules: their features, selection by requirements, and lifecycle."""
