"""One method for each shelf of lorabank, as a package of its own; docs/extending.md shows every file."""
