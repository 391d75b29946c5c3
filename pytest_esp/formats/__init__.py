"""Formats: bytes in files and in flash; no board."""
