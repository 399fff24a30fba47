"""What a model's answers say about it: accuracy, predictions and speed."""
