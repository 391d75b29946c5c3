"""The chip itself: identity, connection, resets, the running app, recovery."""
