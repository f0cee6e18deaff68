"""Adapters without factors that could be summed, which answer alone: those of PEFT's own tuners, and HydraLoRA."""
