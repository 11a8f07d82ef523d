"""What is to be run, as frozen data: schedules, einsums and collectives with their checks."""
