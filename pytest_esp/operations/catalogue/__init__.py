"""Espressif's chips and modules: what they have, which fit a need, and where they are in their life."""
