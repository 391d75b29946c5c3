"""Talking to a board: the warm esptool session and the console."""
