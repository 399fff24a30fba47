"""What a resolution costs, in FLOPs and in milliseconds, and the dial that trades cost against accuracy."""
