"""Runs jobs: actors, the completion flow, limiter, providers, stores, webhooks, metrics."""
