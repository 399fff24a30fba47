"""The page to try a model on: what it says of photographs, where it stops, and what that costs."""
