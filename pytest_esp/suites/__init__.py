"""Test suites that users run on their own racks."""
