"""Saving flash to a folder, and restoring it."""
