"""What `reproduce.py` is made of: the configurations, the trainings, the measurements, and the report."""
