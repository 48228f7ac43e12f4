"""Train into a run, yielding records. Loops are generators; Accelerate is the engine underneath."""
