"""Training: the losses of both stages, what timm's loops are told, and how interrupted runs resume."""
