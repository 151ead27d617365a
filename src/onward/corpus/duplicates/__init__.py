"""Duplicates, exact and near, found in bounded memory."""
