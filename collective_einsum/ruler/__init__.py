"""The ruler: compile any program for a TPU slice, read its schedule, replay it on the torus."""
