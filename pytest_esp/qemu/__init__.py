"""Espressif's QEMU: which machines it has, where it is found, and how it is installed."""
