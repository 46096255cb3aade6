"""The `assistq` command: one file a group of commands."""
