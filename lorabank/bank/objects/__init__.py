"""The files of a bank: where they lie, how they are written and checked."""
