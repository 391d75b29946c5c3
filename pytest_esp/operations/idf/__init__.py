"""The installed ESP-IDF: its tools, and projects built with it."""
