"""The control service: it holds every queue, journals what must survive, and decides how many containers run."""
