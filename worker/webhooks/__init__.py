"""Signed webhooks, by the Standard Webhooks specification: rows in SQL, POSTs at least once."""
