"""Schema migrations of a bank; lorabank runs them from the installed package."""
