"""Long work: rows that say how far it is, a runner that survives its workers, and the controller that ticks."""
