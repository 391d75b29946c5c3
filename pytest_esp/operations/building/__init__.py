"""What can be done to a firmware's files before any board is touched: the group ``firmware`` of the operations."""
