"""Bulk: classifying more images than one process or one sitting can, on Ray Data."""
