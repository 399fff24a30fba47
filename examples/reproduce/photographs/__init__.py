"""Fine-tuning on photographs: what `train_on_photographs.py` prepares, measures and reports."""
