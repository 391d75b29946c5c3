"""Formats of bytes in files and in flash, without a board."""
