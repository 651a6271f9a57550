"""TGI's `/generate` and completions, in both directions."""
