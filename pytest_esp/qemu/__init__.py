"""Espressif's QEMU: finding, installing and running it."""
