"""The engine that runs a program's roles as actors of Ray: on this machine by default, on a cluster by its address."""
