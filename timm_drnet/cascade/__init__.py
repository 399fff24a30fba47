"""Our router: branches run from the smallest candidate up, and an image stops at the first confident answer."""
