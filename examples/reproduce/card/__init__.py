"""What `train_on_card.py` is made of: the images on the device, the stages of training, the rows, and the answers."""
