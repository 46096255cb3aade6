"""Chat completions as OpenAI has them, which three dialects speak.

- `request.py` is what comes in, `completion.py` what goes out, whole or in chunks.
- `answer.py` is the call between the two.
"""
