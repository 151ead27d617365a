"""Quality rules, family by family, over the words and lines of a batch of documents."""
