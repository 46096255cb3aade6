"""Reaching addresses that users chose: what may be connected to, and a transport that keeps to it."""
