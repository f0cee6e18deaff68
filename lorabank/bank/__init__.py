"""The bank: a folder of immutable files and a database of rows that refer to them. No torch, no peft here."""
