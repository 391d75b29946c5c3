"""What is done to a build's files, and programs in RAM."""
