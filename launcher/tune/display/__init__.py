"""What a search shows: the live table, remaining time, and how values are formatted."""
