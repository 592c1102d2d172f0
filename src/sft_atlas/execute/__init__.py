"""Do what a plan says is missing, on this machine's cores or devices."""
