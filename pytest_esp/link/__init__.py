"""Communication with a board: the persistent esptool session and the console."""
