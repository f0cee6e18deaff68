"""One model in any mixture of its adapters."""
