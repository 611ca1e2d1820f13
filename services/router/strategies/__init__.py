"""How routes that lead over others are carried out: one module for each strategy's order of events."""
