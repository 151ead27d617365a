"""Documents in, token shards out: reading, quality, duplicates, the held-out split, tokens, packing, the ledger."""
