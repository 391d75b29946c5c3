"""ESP-IDF as it is installed here: its tools, and projects that are built with it."""
