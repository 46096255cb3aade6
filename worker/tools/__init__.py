"""The tools that a model may call: HTTP actions, Python functions, MCP servers."""
