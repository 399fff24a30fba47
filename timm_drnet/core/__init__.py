"""The paper: resolution-aware norms, the predictor and its choice, routing, and the network made of them."""
