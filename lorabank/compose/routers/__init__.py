"""Routers: which task does a text belong to, judged by features of the frozen base; one file each."""
