"""Many Gaussians: their covariances, and bounds by which all but a few of them need no score."""
