"""The Hub: pushes a run's folder and its newest checkpoint, and fetches a checkpoint to go on from."""
