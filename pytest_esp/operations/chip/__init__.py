"""The chip itself: who answers, connections, resets, the running app, recovery."""
