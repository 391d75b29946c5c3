"""Over-the-air updates: packages, deployment to a device, and rollback."""
