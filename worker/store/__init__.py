"""What was done, in SQL: one transaction a job."""
