"""Names and weights: the registered models, weights from elsewhere, and publishing."""
