"""The output queue: tokens of a step become text for the readers."""
