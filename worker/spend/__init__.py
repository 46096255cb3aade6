"""What calls cost, and the caps of batches and workspaces: reserved before a call, spent with its reply."""
