"""Cache advice: what in consecutive prompts of a chat keeps a computed prefix from being reused, and its repairs.

Works on texts and tokens, and knows no engine, no HTTP and no template. Nothing is written to a disk or a log here.
"""
