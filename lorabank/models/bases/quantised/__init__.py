"""Linear layers whose matrix is kept quantised, and the quantisers: one file each."""
