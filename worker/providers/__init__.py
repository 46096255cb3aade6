"""The assistants' services: one narrow protocol, its implementations, its errors."""
