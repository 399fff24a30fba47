"""The authors' release: MindSpore checkpoints, read and renamed."""
