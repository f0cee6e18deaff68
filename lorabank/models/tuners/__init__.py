"""PEFT's own tuners: adapters without factors, which answer alone."""
