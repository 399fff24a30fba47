"""Images: finding, reading and labelling them, and folders that are written whole or not at all."""
