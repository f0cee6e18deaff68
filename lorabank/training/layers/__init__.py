"""The trainable layer, its kernels, and what keeps it in step with what is trained."""
