"""The reference engine behind OpenAI's HTTP interface, and the same requests read from a file.

Invariant: the engine is touched by one thread alone; nothing here knows about memory. No prompt and no generated text
is ever logged or recorded.
"""
