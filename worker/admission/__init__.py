"""What enters the Dramatiq queue, and what comes back from dead workers."""
