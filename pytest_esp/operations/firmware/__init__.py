"""Work on the files of a build, and programs in RAM."""
