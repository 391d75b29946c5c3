"""Boards under test, with the same interface for every backend."""
