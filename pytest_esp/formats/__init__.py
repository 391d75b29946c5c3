"""File and flash formats. This package does not access boards."""
