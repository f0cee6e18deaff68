"""Base models: found, described, loaded; which of their layers can be adapted."""
