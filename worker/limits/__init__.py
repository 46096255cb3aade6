"""The limiter: requests and tokens a minute of each lane, shared by all workers."""
