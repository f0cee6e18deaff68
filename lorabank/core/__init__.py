"""What every package may use: records, settings, errors, LoRA algebra."""
