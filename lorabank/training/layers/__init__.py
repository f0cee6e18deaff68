"""The trainable layer, and what keeps it in step with what is trained."""
