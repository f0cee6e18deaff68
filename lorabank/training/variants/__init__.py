"""The trainable layer and its kernels."""
