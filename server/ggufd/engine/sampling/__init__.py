"""From a row of logits to text that may be sent: samplers, grammars, banned phrases, detokenizing."""
