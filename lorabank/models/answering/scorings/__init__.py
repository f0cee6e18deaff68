"""Scorings: how a language model is asked for the answers to a task's rows; one file each."""
