"""Analysis: a model's choices of resolutions, held against the best ones, and the page about it."""
