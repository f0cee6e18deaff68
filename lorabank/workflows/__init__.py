"""The use cases, one file each; `lorabank.api` gathers them."""
