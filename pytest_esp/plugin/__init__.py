"""The pytest plugin: options, fixtures, markers, scheduling, reports."""
