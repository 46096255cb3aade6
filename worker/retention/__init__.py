"""What ended long ago, and what nobody uses any more, is deleted by one process at a time."""
