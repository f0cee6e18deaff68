"""Keeping a bank: verify, backup, restore, repair, upgrade, remove, undo, gc."""
