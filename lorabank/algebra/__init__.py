"""LoRA algebra: factors of one adapter, several of them stacked, compression, subspaces."""
