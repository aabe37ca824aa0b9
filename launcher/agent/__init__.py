"""Node agent: starts, supervises and ends the processes of one node, and reports its hardware and software."""
