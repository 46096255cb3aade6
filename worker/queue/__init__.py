"""The jobs that have not ended, as Redis holds them: leases, epochs, journals, ends."""
