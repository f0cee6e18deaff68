"""What another package may add to the shelves of lorabank: the tests put this folder on the import path."""
