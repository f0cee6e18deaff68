"""The web page of a served bank: read it, ask it and, where that is allowed, change it."""
