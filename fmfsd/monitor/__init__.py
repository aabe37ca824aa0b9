"""What a run or a search is doing, live, by its files alone: from any host that sees them, without torch."""
