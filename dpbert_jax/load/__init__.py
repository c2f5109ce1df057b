"""Load: what a server holds, under real requests and under simulated ones."""
